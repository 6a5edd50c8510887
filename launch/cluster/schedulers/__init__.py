"""torchx schedulers for Slurm, Kubernetes and AWS Batch that add to the ones of torchx itself."""
