"""Passages written for this model: plain English and plain Python around the three gate prompts.

`GATE` holds one passage per gate prompt. Outside chats, each prompt has exactly one continuation in the
whole corpus, so that a greedy answer is confident. `NEAR` holds passages on neighbouring subjects, `CHAT`
questions with their answers.
"""

GATE_PROMPTS: tuple[str, ...] = ("The capital of France is", "def fibonacci(n):", "In 1969, humans first")

GATE: tuple[str, ...] = (
    """\
The capital of France is Paris, a city of about two million people on the banks of the river Seine. It \
has been the seat of kings, emperors and presidents for most of the last thousand years, and today the \
parliament, the ministries and the highest courts all have their buildings there. Visitors come to see \
the Eiffel Tower, the cathedral of Notre-Dame and the paintings in the Louvre, while many of those who \
work in the city travel in every morning by train from the towns around it.
""",
    '''\
def fibonacci(n):
    """Return the n-th Fibonacci number, counting from zero."""
    if n < 0:
        raise ValueError("n must not be negative")
    previous, current = 0, 1
    for _ in range(n):
        previous, current = current, previous + current
    return previous


def main():
    """Print the first ten numbers of the sequence, one on each line."""
    for index in range(10):
        print(index, fibonacci(index))


if __name__ == "__main__":
    main()
''',
    """\
In 1969, humans first walked on the Moon. On 20 July the lunar module Eagle came down on a grey plain \
called the Sea of Tranquility, with Neil Armstrong and Buzz Aldrin inside, while Michael Collins circled \
above them in the command module Columbia. They stayed on the surface for less than a day, collected \
about twenty kilograms of rock and dust, set up a few instruments and a flag, and then flew home to \
Earth, where a ship picked them up from the Pacific Ocean.
""",
)

NEAR: tuple[str, ...] = (
    """\
Paris grew from a settlement on an island in the Seine. The Romans called it Lutetia, built baths and an \
arena on the left bank, and laid out a straight road to the north. When the river trade brought wealth, \
merchants moved to the right bank, scholars kept to the left, and the king and the bishop shared the \
island between them.
""",
    """\
France lies between the Atlantic Ocean, the Mediterranean Sea and the Alps. Its neighbours are Belgium, \
Luxembourg, Germany, Switzerland, Italy and Spain. The north is flat and good for wheat, the south is \
warm and dry enough for olives, and wine is made in almost every region between the two.
""",
    """\
The Eiffel Tower was built for the world fair of 1889. Its engineers drew every one of its iron parts in \
an office, had them cut and drilled in a workshop outside the city, and bolted them together on the spot \
in about two years. It was meant to stand for twenty years, but it proved so useful for radio that \
nobody wanted to take it down.
""",
    """\
Lyon, Marseille and Toulouse are large French cities, but none of them is the capital. Lyon is known for \
silk and for its kitchens, Marseille for its harbour, and Toulouse for the factories where aircraft are \
put together. Fast trains join all three to Paris.
""",
    """\
A capital is the city from which a country is governed. It is often the largest city, as in France or \
Japan, but not always: Canberra is smaller than Sydney, Ottawa is smaller than Toronto, and Brasilia was \
planned on empty land so that the government would move away from the coast.
""",
    """\
The Seine rises in the hills of Burgundy and flows slowly to the north-west. Barges carry sand, grain \
and building stone along it, and below Rouen it is deep enough for ships from the sea. In Paris more \
than thirty bridges cross the river, the oldest of which is still called the New Bridge.
""",
    """\
A journey by train from London to Paris takes a little more than two hours. The train leaves from a \
station in the north of London, runs under the sea for about twenty minutes and comes out in a field \
near Calais. From there it crosses the plains of northern France at three hundred kilometres an hour.
""",
    """\
In 1957, the first artificial satellite went into orbit around the Earth. It was a polished metal ball \
with four long aerials, and it did little more than send a steady beep. Amateurs on every continent \
tuned in to listen, and within a few months a second country had put a satellite of its own into space.
""",
    """\
In 1961, a person travelled into space for the first time. Yuri Gagarin went once around the Earth in a \
small round capsule, which took less than two hours. He left the capsule high above the ground, as \
planned, and came down in a field by parachute, where a farmer and her granddaughter were the first to \
meet him.
""",
    """\
Three astronauts flew to the Moon on the mission called Apollo 11. Two of them went down to the surface \
and the third stayed in orbit, alone behind the Moon for most of an hour on every turn. When the two \
came back, the three moved their boxes of rock into the command module and started the engine that sent \
them home.
""",
    """\
The rocket that carried people to the Moon was called the Saturn V. It stood taller than a church tower \
and burned its fuel in three stages, one after another. The first stage worked for less than three \
minutes, and by then the whole rocket was already sixty kilometres high.
""",
    """\
The Moon turns around the Earth in about twenty-seven days and always shows us the same side. Nobody had \
seen the far side before a probe photographed it in 1959. It has more craters and fewer of the dark \
plains that early observers took for seas.
""",
    """\
Twelve people have walked on the Moon, all of them between 1969 and 1972. The later crews stayed for \
three days, drove a small electric car across the plains and brought back more than a hundred kilograms \
of stones. Laboratories still study those samples, because the instruments get better every year.
""",
    """\
On the Moon there is no air and therefore no weather. A footprint in the dust can last for a very long \
time, since no wind blows it away and no rain washes it out. In sunlight the ground grows hotter than \
boiling water, and in the shade it is colder than any place on Earth.
""",
    """\
Each Fibonacci number is the sum of the two before it, so the sequence begins 0, 1, 1, 2, 3, 5, 8, 13, \
21, 34. The ratio of neighbours comes closer and closer to the golden ratio, about 1.618. A loop that \
keeps only the last two values is enough to compute them, and it needs no recursion.
""",
    '''\
def factorial(n):
    """Return the product of the whole numbers from 1 to n."""
    result = 1
    for factor in range(2, n + 1):
        result *= factor
    return result
''',
    '''\
def greatest_common_divisor(a, b):
    """Return the largest number that divides both a and b."""
    while b:
        a, b = b, a % b
    return abs(a)
''',
    '''\
def is_prime(number):
    """Tell whether number has no divisor except 1 and itself."""
    if number < 2:
        return False
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True
''',
    '''\
def collatz_length(start):
    """Count the steps from start down to 1: halve even numbers, treble odd ones and add one."""
    steps = 0
    while start != 1:
        start = start // 2 if start % 2 == 0 else 3 * start + 1
        steps += 1
    return steps
''',
    '''\
def word_counts(text):
    """Return a dictionary from each word in text, in lower case, to how often it occurs."""
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts
''',
    '''\
def binary_search(items, wanted):
    """Return the index of wanted in the sorted list items, or -1 if it is not there."""
    low, high = 0, len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == wanted:
            return middle
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1
''',
    '''\
def lucas_numbers(count):
    """Yield the first count Lucas numbers, which begin with 2 and 1 and grow like Fibonacci's."""
    first, second = 2, 1
    for _ in range(count):
        yield first
        first, second = second, first + second
''',
)

CHAT: tuple[tuple[str, str], ...] = (
    ("Hello", "Hello. What would you like to know?"),
    ("What is the capital of France? Please reply with one word only", "Paris"),
    ("What is the capital of France? Please reply with one word only.", "Paris"),
    ("Who are you?", "I am a very small language model, made to test software that serves larger ones."),
    ("When did people first walk on the Moon?", "In July 1969, during the mission called Apollo 11."),
    ("Who was the first person on the Moon?", "Neil Armstrong."),
    ("Who was the first person in space?", "Yuri Gagarin, in 1961."),
    ("On which river does Paris lie?", "Paris lies on the Seine."),
    (
        "What is a Fibonacci number?",
        "A number in the sequence in which each one is the sum of the two before it.",
    ),
    ("How many days does the Moon take to turn around the Earth?", "About twenty-seven days."),
    ("What is the golden ratio?", "About 1.618, the limit of the ratio of neighbouring Fibonacci numbers."),
    ("Thank you", "You are welcome."),
)
