"""Recipes and the scripts that start them. Data first."""
