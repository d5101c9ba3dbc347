"""What frozen features tell: linear and k-NN accuracy, recoverability, alignment and uniformity."""
