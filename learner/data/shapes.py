"""The synthetic data set: a few coloured shapes on a light background."""

COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 160, 60),
    "blue": (40, 90, 220),
    "yellow": (235, 190, 20),
    "purple": (140, 60, 180),
    "black": (40, 40, 45),
}
FORMS = ("circle", "square", "triangle")
