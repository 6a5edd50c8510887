# The image of a job on Kubernetes or AWS Batch: docker build --build-arg MACHINE=gpu -t registry/msrec:1 .
# One base for both machines: torch's CUDA wheels bring CUDA, and the driver is the host's.
FROM python:3.11-slim-bookworm

# cpu or gpu, as in the Makefile.
ARG MACHINE=cpu

# What NVIDIA's container runtime gives to an image.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1

WORKDIR /app

# A change of the code leaves this layer, which takes minutes, as it is.
COPY requirements requirements
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements/${MACHINE}.txt

# Editable, so that a torchx workspace, which is copied over /app, is what runs.
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -e . \
    && pip check \
    && msrec train --help >/dev/null  # checks the triple
