"""The objective of a step and its losses."""
