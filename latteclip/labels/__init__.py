"""Labels of training images, from votes, image features and a person's answers."""
