"""What is relied on in `re`."""

from vistrain.internals.patterns import CODES, parsed, parsed_replacement


def test_a_pattern_is_a_tree() -> None:
    nodes = parsed(r"^a(\d+)(?=b)")
    assert [code for code, _ in nodes] == [CODES.AT, CODES.LITERAL, CODES.SUBPATTERN, CODES.ASSERT]
    assert nodes[1][1] == ord("a")
    number, _, _, inner = nodes[2][1]
    assert number == 1
    assert inner[0][0] is CODES.MAX_REPEAT


def test_a_replacement_is_texts_and_groups() -> None:
    assert parsed_replacement(r"(a)(b)", r"x\2.\g<1>") == ["x", 2, ".", 1]
    assert parsed_replacement(r"a", "") == []
