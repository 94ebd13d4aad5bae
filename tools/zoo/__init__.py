"""The models of the zoo, by field."""
