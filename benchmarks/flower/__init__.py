"""Flower with and without compressed replies: bytes on the wire of a real deployment, and accuracies."""
