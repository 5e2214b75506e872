"""The matrix of architectures: the families of classifiers of timm, torchvision and transformers, and what works."""
