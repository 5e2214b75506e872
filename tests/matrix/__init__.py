"""Every family of classifiers that timm, torchvision and transformers have, looked into: what works, and what not."""
