"""What `train_digits.py` is made of: data, network, training, table and figure, one idea to a file."""
