"""What may be said on the command line, by name. Nothing is imported here: `--help` does not wait for torch."""

DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash")
TRAIN_MODES = ("full", "lora", "qlora", "frozen")
ADAPTED = ("lora", "qlora")  # those with adapters
OPTIMIZERS = ("adamw", "adamw-fused", "adamw-fp32", "adamw-8bit", "sgd", "sgd-momentum")
