"""torchx schedulers for Slurm, Kubernetes, KubeRay and AWS Batch that add to those of torchx."""
