"""Config files for `accelerate launch`, and `python -m distill.launch NAME`, which finds them."""
