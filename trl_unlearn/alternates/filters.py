"""
What is wrong with a text as an alternate answer, if anything.

How the true facts are recognised: of the answer's words, those that are neither in the question (it may be repeated) nor
function words can carry a fact; the sample must not have more than a share of them. In a long answer most of these words
carry none ("work", "known", "style"), and one that gives the true name in new words would pass. So the words with a capital
letter or a digit (names, places, titles, dates) are also counted by themselves, and the larger of the two shares counts.
Words are compared by their stems, each once. Synonyms of a fact are not recognised, and a sample that changes one of many
facts and keeps the others is rejected.
"""

import re
from functools import cache

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer


# Why a sample is rejected, in the order in which it is looked at
REASONS = {
    "unfinished": "no end within the limit of tokens",
    "empty": "no word",
    "copy": "equal to the answer, or nearly",
    "facts": "still has the true facts",
    "duplicate": "equal to one that is kept, or nearly",
}

# Where words are written without spaces, a character is a word
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")
_SENTENCE_START = re.compile(r"(?:^|[.!?:]\s|\n)[^\w\n]*\Z")
# English words that carry no fact; "yes" and "no" are not among them
_FUNCTION_WORDS = frozenset(
    """
    a about after all also although am an and any are as at be became because become been before being between both but by
    can could d did do does done during each either for from had has have having he her hers herself him himself his how i
    if in into is it its itself ll m many may me might more most much must my nor not of on one or other our out over own
    re s shall she should since so some such t than that the their theirs them themselves then there these they this those
    through to too under until up upon us ve very was we were what when where whether which while who whom whose why will
    with within without would you your
    """.split()
)


class Words(Tokenizer):
    """Tokenizer of [`~rouge_score.rouge_scorer.RougeScorer`] for words of any script, by their stems."""

    def tokenize(self, text: str) -> list[str]:
        return [_stem(word) for word in _WORD.findall(text.lower())]


_WORDS = Words()
_ROUGE = RougeScorer(["rougeL"], tokenizer=_WORDS)


def reason_to_reject(
    text: str, question: str, answer: str, kept: list[str], max_similarity: float = 0.9, max_fact_recall: float = 0.5
) -> str | None:
    """
    Why a finished text is no alternate.

    Args:
        text (`str`):
            Text.
        question (`str`):
            Question.
        answer (`str`):
            Answer to be forgotten.
        kept (`list[str]`):
            Alternates that the question already has.
        max_similarity (`float`, *optional*, defaults to `0.9`):
            ROUGE-L F1 above which two texts are nearly equal.
        max_fact_recall (`float`, *optional*, defaults to `0.5`):
            Share of the answer's own words, see [`fact_recall`], above which the text still has the true facts.

    Returns:
        `str` or `None`: One of `REASONS`, or `None` of a text to be kept.

    Example:

    ```python
    >>> reason_to_reject("She comes from Ashford.", "Where was Greta born?", "In Ashford.", kept=[])
    'facts'
    ```
    """
    if not _WORD.search(text):
        return "empty"
    if similarity(text, answer) > max_similarity:
        return "copy"
    if fact_recall(text, question, answer) > max_fact_recall:
        return "facts"
    if any(similarity(text, other) > max_similarity for other in kept):
        return "duplicate"
    return None


def similarity(text: str, other: str) -> float:
    """ROUGE-L F1 of two texts by the stems of their words, 1 of equal ones."""
    return _ROUGE.score(other, text)["rougeL"].fmeasure


def fact_recall(text: str, question: str, answer: str) -> float:
    """
    Share of the answer's own words that a text has: of all of them, or of names and numbers, whichever is larger.

    Own words are those that are neither in the question nor function words. An answer without any, and one without names or
    numbers, has a share of 0.

    Args:
        text (`str`):
            Text.
        question (`str`):
            Question, whose words the text may repeat.
        answer (`str`):
            Answer to be forgotten.

    Returns:
        `float`

    Example:

    ```python
    >>> fact_recall("She likes onion tart.", "What does Greta eat most?", "She loves apple pie.")
    0.0
    ```
    """
    given = {*_WORDS.tokenize(question), *map(_stem, _FUNCTION_WORDS)}
    own, names = set(), set()
    for match in _WORD.finditer(answer):
        stem = _stem(match[0].lower())
        if stem in given:
            continue
        own.add(stem)
        is_capital = match[0] != match[0].lower() and not _SENTENCE_START.search(answer, 0, match.start())
        if is_capital or any(character.isdigit() for character in match[0]):
            names.add(stem)
    there = set(_WORDS.tokenize(text))
    return max(len(words & there) / len(words) if words else 0.0 for words in (own, names))


@cache
def _stem(word: str) -> str:
    return PorterStemmer().stem(word) if len(word) > 3 else word  # as ROUGE does
