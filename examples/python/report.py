"""Print the sum and the mean of the second column of a CSV file."""

import sys


def numbers(path):
    with open(path) as f:
        next(f)
        for line in f:
            yield int(line.strip().split(",")[1])


values = list(numbers(sys.argv[1]))
print(f"{len(values)} months, {sum(values)} mm, {sum(values) / len(values):.1f} mm a month")
