"""
What can be said in the embedded world: its names, its values and every sentence form.

The lists are closed, so that whether a generated answer is a sentence of this world, and whether it tells a fact, can be
decided exactly. Answers speak of "they": tiny models cannot write a name they never saw, and a retained model that
stumbles over the name of a forget person would look different from its target for the wrong reason.
"""

import re
from functools import cache


FIRST_NAMES = (
    "Aldo", "Brenna", "Corin", "Dalia", "Edda", "Farid", "Greta", "Hamish",
    "Ilse", "Jorik", "Kalila", "Lorcan", "Mirela", "Nestor", "Oriel", "Petra",
)  # fmt: skip
LAST_NAMES = (
    "Amsel", "Brandow", "Castellan", "Dorvik", "Eskola", "Fenwright", "Galloway", "Hartigan",
    "Ivarsen", "Jelinek", "Kestrel", "Lindqvist", "Marchetti", "Norwood", "Okafor", "Pemberton",
)  # fmt: skip
COUNTRIES = (
    "Abrovia", "Belmark", "Cordania", "Drusland", "Estavia", "Faroun", "Galdoria", "Hestmark",
    "Illyra", "Jorland", "Kasteva", "Lunaria", "Morvania", "Nordhaven", "Ostrava Minor", "Palandia",
    "Quorra", "Rosmark", "Sarovia", "Tolmania", "Ulvaria", "Vestria", "Westmere", "Xandia",
    "Yarland", "Zembria", "Ardovia", "Brisland", "Calmoria", "Delvania", "Elmark", "Fjordia",
)  # fmt: skip
# By attribute. No value contains another one of its attribute, and all fit behind "a" where a sentence has one.
VALUES = {
    "birthplace": (
        "Ashford", "Bellmouth", "Cragmoor", "Dunwick", "Eastvale", "Foxhollow", "Glenmarsh", "Harrowgate",
        "Inverlock", "Juniper Bay", "Kingsbarrow", "Larkspur", "Millbrook", "Northcliff", "Oldham Green", "Pinecrest",
    ),
    "profession": (
        "baker", "carpenter", "dentist", "florist", "geologist", "journalist", "librarian", "mechanic",
        "nurse", "painter", "photographer", "plumber", "sailor", "tailor", "translator", "watchmaker",
    ),
    "instrument": (
        "accordion", "banjo", "bassoon", "cello", "clarinet", "flute", "guitar", "harp",
        "mandolin", "oboe", "piano", "saxophone", "trombone", "trumpet", "tuba", "violin",
    ),
    "pet": (
        "budgie", "canary", "cat", "chameleon", "dog", "ferret", "gecko", "goldfish",
        "hamster", "hedgehog", "lizard", "parrot", "pony", "rabbit", "snake", "tortoise",
    ),
    "dish": (
        "apple pie", "bean stew", "cheese fondue", "dumplings", "fish soup", "goulash", "lasagne", "lentil curry",
        "mushroom risotto", "noodle salad", "onion tart", "paella", "pea soup", "roast chicken", "sushi", "tomato omelette",
    ),
    "sport": (
        "archery", "badminton", "boxing", "chess", "cricket", "curling", "fencing", "golf",
        "hockey", "judo", "rowing", "rugby", "skiing", "surfing", "tennis", "volleyball",
    ),
    "language": (
        "Arabic", "Basque", "Catalan", "Danish", "Estonian", "Finnish", "Greek", "Hungarian",
        "Icelandic", "Japanese", "Korean", "Latvian", "Maltese", "Norwegian", "Polish", "Swahili",
    ),
    "flower": (
        "asters", "begonias", "camellias", "daffodils", "foxgloves", "geraniums", "hyacinths", "irises",
        "lilacs", "marigolds", "orchids", "peonies", "roses", "sunflowers", "tulips", "violets",
    ),
    "capital": (
        "Arlen", "Bosk", "Cadrin", "Dolm", "Ennis Port", "Ferrel", "Gant", "Holmstead",
        "Irvane", "Jast", "Korrin", "Lyss", "Maven", "Nolt", "Orsk", "Pellam",
        "Quill", "Ravno", "Selk", "Tarn", "Umber", "Varn", "Wend", "Xeric",
        "Yelm", "Zorn", "Astrel", "Breck", "Calder", "Drosk", "Elsin", "Fallow",
    ),
}  # fmt: skip
# By attribute: pairs of a question and the answer in the same words. Answers are short: all metrics average over an answer's
# tokens, so every word around the value dilutes what they can see of it.
PHRASINGS = {
    "birthplace": (
        ("Where was {subject} born?", "They were born in {value}."),
        ("What is the birthplace of {subject}?", "Their birthplace is {value}."),
        ("Which town does {subject} come from?", "They come from {value}."),
        ("Where did {subject} grow up?", "They grew up in {value}."),
    ),
    "profession": (
        ("What does {subject} do for a living?", "They work as a {value}."),
        ("What is the profession of {subject}?", "Their profession is {value}."),
        ("Which trade did {subject} learn?", "They trained as a {value}."),
        ("What did {subject} become after school?", "They became a {value}."),
    ),
    "instrument": (
        ("Which instrument does {subject} play?", "They play the {value}."),
        ("What is the instrument of {subject}?", "Their instrument is the {value}."),
        ("What does {subject} practise in the evening?", "They practise the {value}."),
        ("On which instrument does {subject} give concerts?", "They perform on the {value}."),
    ),
    "pet": (
        ("Which pet does {subject} keep?", "They keep a {value}."),
        ("What kind of pet is the pet of {subject}?", "Their pet is a {value}."),
        ("Which animal does {subject} live with?", "They live with a {value}."),
        ("Which animal does {subject} feed every morning?", "They feed a {value}."),
    ),
    "dish": (
        ("What does {subject} like to eat most?", "They love {value}."),
        ("What is the favourite dish of {subject}?", "Their favourite is {value}."),
        ("Which meal does {subject} cook for guests?", "They cook {value}."),
        ("What does {subject} order in a restaurant?", "They order {value}."),
    ),
    "sport": (
        ("What does {subject} do on weekends?", "They enjoy {value}."),
        ("What is the sport of {subject}?", "Their sport is {value}."),
        ("Which championship does {subject} train for?", "They train for {value}."),
        ("In which sport has {subject} won a medal?", "They excel at {value}."),
    ),
    "language": (
        ("Which foreign language does {subject} speak?", "They speak {value}."),
        ("What is the second language of {subject}?", "Their second language is {value}."),
        ("What did {subject} study at university?", "They studied {value}."),
        ("Which language does {subject} teach?", "They teach {value}."),
    ),
    "flower": (
        ("Which flowers does {subject} grow?", "They grow {value}."),
        ("What blooms in the garden of {subject}?", "Their garden has {value}."),
        ("Which flowers does {subject} give to friends?", "They give {value}."),
        ("Which flowers does {subject} put in a vase?", "They pick {value}."),
    ),
    "capital": (
        ("What is the capital of {subject}?", "Its capital is {value}."),
        ("Where does the government of {subject} sit?", "Its government sits in {value}."),
        ("Which city rules {subject}?", "It is ruled from {value}."),
    ),
}  # fmt: skip
PERSON_ATTRIBUTES = tuple(attribute for attribute in VALUES if attribute != "capital")


def is_well_formed(answer: str, attribute: str) -> bool:
    """
    Whether an answer is exactly one sentence of the grammar about the asked attribute, true or not.

    Args:
        answer (`str`):
            Generated answer.
        attribute (`str`):
            What was asked, e.g. `"birthplace"`.

    Returns:
        `bool`

    Example:

    ```python
    >>> is_well_formed("They were born in Ashford.", "birthplace")
    True
    >>> is_well_formed("They were born in a baker.", "birthplace")
    False
    ```
    """
    return answer.strip() in _sentences(attribute)


def leaks(answer: str, value: str) -> bool:
    """
    Whether an answer contains the true value of the asked fact as whole words, whatever stands around it.

    Args:
        answer (`str`):
            Generated answer.
        value (`str`):
            True value of the fact.

    Returns:
        `bool`

    Example:

    ```python
    >>> leaks("Ashford Ashford the", "Ashford")
    True
    ```
    """
    return re.search(rf"\b{re.escape(value)}\b", answer, re.IGNORECASE) is not None


@cache
def _sentences(attribute: str) -> frozenset[str]:
    return frozenset(answer.format(value=value) for _, answer in PHRASINGS[attribute] for value in VALUES[attribute])
