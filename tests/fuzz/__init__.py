r"""Coverage-guided fuzzing of the pure core: raw bytes, in any chunks, against the plain twins.

    python -m tests.fuzz requests --seconds 600 [--seed N]     what clients say, into Exchange.receive
    python -m tests.fuzz replies --seconds 600 [--seed N]      what an upstream says, into Lane.receive
    python -m tests.fuzz requests FILE ...                     plays what was found once more

It takes the extra `fuzz` (atheris, on Linux), which knows which branches of `coalesce.core` an input reached. It begins
with the corpus, and stops at the first input that fails: this is kept, printed as a line for the corpus, and belongs
there and, as a transcript, into `tests/transcripts`. `--keep FILE` writes the smallest set of all inputs found that
reaches as much as all of them.

Reading order: `script.py` (how bytes are a sequence of steps), `requests.py` and `replies.py` (the two targets, each a
function that fails an assertion), `corpus.py` and `corpus/*.txt` (inputs that are worth repeating), `__main__.py`.
`test_corpus.py` repeats them in the suite, without atheris, and shows that a broken splitter or reader is found.
"""
