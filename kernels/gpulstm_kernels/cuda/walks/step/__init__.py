"""Products by cuBLAS and one fused kernel a step: any size, any type."""
