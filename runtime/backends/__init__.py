"""The engines that run a bundle's graphs."""
