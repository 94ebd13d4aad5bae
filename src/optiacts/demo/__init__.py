"""`optiacts demo`: a small GPT trained on real text with and without OptiActs, and BERT-base's saved memory."""
