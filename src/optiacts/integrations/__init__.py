"""One line in the trainers that people use. docs/trainers.md shows each, with what was tried where.

hf_kernels.py     transformers, ``use_kernels=True``: a mapping of its layers to ours
hf_trainer.py     transformers' Trainer and TRL's trainers: a callback
lightning.py      Lightning: a callback
axolotl.py        axolotl: a plugin
llamafactory.py   LLaMA-Factory: a kernel
torchtitan.py     torchtitan: overrides, and what selective checkpointing saves

Each imports its host, so nothing here is imported by ``import optiacts``. They rest on the public functions of
optiacts.
"""
