"""A Flower app: a small CNN on Fashion-MNIST, split over the clients by labels."""
