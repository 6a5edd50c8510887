"""torchx schedulers, where the stock ones are wrong or short."""
