# Runtime image:   docker build -t vistrain .
# One GPU:         docker run --rm --gpus all --shm-size 8g -v /path/to/coco:/data -v "$PWD/runs:/home/vistrain/runs" \
#                      vistrain fit --config vistrain:det/deformable_detr_r50
# --shm-size (or --ipc=host) matters: data workers hand over batches through /dev/shm, of which Docker gives 64 MB.
# The Python that continuous integration tests with.
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 vistrain
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY vistrain vistrain
COPY configs configs
RUN pip install --no-cache-dir --constraint constraints.txt ".[fast,tensorboard]" && rm -rf /src/*

USER vistrain
WORKDIR /home/vistrain
ENV VISTRAIN_DATA=/data OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
ENTRYPOINT ["vistrain"]
CMD ["--help"]
