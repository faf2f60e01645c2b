"""Which fold a case of volumes is in."""

from __future__ import annotations

from collections.abc import Sequence

from vistrain.data.base.patient_folds import dealt
from vistrain.data.volumes.cases import Case
from vistrain.errors import DataError


def folds_of(cases: Sequence[Case], folds: int) -> list[int]:
    """The fold of each case: the one that its list says, or patients in a fixed random order, dealt one by one.

    Args:
        cases: in any order; the folds depend on the patients' names alone.
        folds: how many.

    Raises:
        DataError: a patient is in two folds, some cases have one and others none, the folds that are said are not those
            from 0 on, or there are fewer patients than folds.
    """
    said = [case for case in cases if case.fold is not None]
    if said and len(said) < len(cases):
        without = next(case for case in cases if case.fold is None)
        raise DataError(
            without.id, f"has no fold, and {len(said)} other cases have one", "give every case one, or none"
        )
    if said:
        of_patient: dict[str, Case] = {}
        for case in cases:
            first = of_patient.setdefault(case.patient or case.id, case)
            if first.fold != case.fold:
                problem = f"is in fold {case.fold}, and {first.id} of the same patient in fold {first.fold}"
                raise DataError(case.id, problem, "a patient's cases stay together")
        numbers = sorted({int(case.fold or 0) for case in cases})
        if numbers != list(range(folds)):
            listed = ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
            remedy = f"set data.folds={len(numbers)}" if numbers == list(range(len(numbers))) else "number them from 0"
            raise DataError("data.folds", f"is {folds}, and the list has the folds {listed}", remedy)
        return [int(case.fold or 0) for case in cases]
    fold = dealt((case.patient or case.id for case in cases), folds)
    return [fold[case.patient or case.id] for case in cases]
