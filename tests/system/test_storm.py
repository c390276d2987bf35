"""The oracle of the storms sees what it is there to see."""
import copy
import random
import unittest

import storm


def answer(tokens, finish="length"):
    """Logprobs tell equal tokens at different places apart, as those of a model do."""
    return {"tokens": list(tokens), "logprobs": [-0.5 - i / 64 for i in range(len(tokens))],
            "text": "".join(chr(97 + token % 26) for token in tokens), "finish": finish}


def cut(whole, begin, end, again=False):
    """The answer without the tokens [begin, end), or with them twice."""
    made = copy.deepcopy(whole)
    for key in "tokens", "logprobs":
        values = whole[key]
        made[key] = values[:end] + values[begin:] if again else values[:begin] + values[end:]
    return made


class Oracle(unittest.TestCase):
    def setUp(self):
        self.rng = random.Random(3)
        self.whole = answer([self.rng.randrange(200) for _ in range(300)])

    def test_the_same_is_the_same(self):
        self.assertIsNone(storm.difference(copy.deepcopy(self.whole), self.whole))

    def test_lost_tokens_are_counted_wherever_they_were(self):
        for begin, end in (0, 1), (100, 107), (250, 300), (0, 300):
            found = storm.difference(cut(self.whole, begin, end), self.whole)
            self.assertEqual((found["lost"], found["repeated"], found["changed"], found["at"]),
                             (end - begin, 0, 0, begin), found)

    def test_repeated_tokens_are_counted_wherever_they_were(self):
        for begin, end in (0, 1), (100, 107), (250, 300):
            found = storm.difference(cut(self.whole, begin, end, again=True), self.whole)
            self.assertEqual((found["lost"], found["repeated"], found["changed"], found["at"]),
                             (0, end - begin, 0, end), found)

    def test_a_repetition_shows_in_an_answer_that_repeats_itself(self):
        whole = answer([7] * 50)
        self.assertEqual(storm.difference(cut(whole, 20, 23, again=True), whole)["repeated"], 3)
        self.assertEqual(storm.difference(cut(whole, 20, 23), whole)["lost"], 3)

    def test_one_bit_of_one_logprob_is_a_change(self):
        got = copy.deepcopy(self.whole)
        got["logprobs"][150] += 2 ** -40
        found = storm.difference(got, self.whole)
        self.assertEqual((found["changed"], found["lost"], found["repeated"], found["at"]),
                         (1, 0, 0, 150), found)

    def test_another_text_or_reason_is_a_change(self):
        for key, value in ("text", self.whole["text"] + " "), ("finish", "stop"):
            self.assertEqual(storm.difference({**self.whole, key: value}, self.whole)["changed"], 1)


class Pauses(unittest.TestCase):
    TIMES = [0.0, 0.1, 0.2, 0.25, 1.0, 1.1, 1.2]  # a blow at 0.22; one token was on its way

    def test_a_token_that_was_on_its_way_ends_no_pause(self):
        over_s, length = storm.longest_pause(self.TIMES, 0.22, float("inf"))
        self.assertAlmostEqual(over_s, 0.78)
        self.assertAlmostEqual(length, 0.75)

    def test_the_next_blow_has_its_own(self):
        self.assertIsNone(storm.longest_pause(self.TIMES, 0.3, 0.9))
        over_s, _ = storm.longest_pause(self.TIMES, 0.22, 0.5)
        self.assertAlmostEqual(over_s, 0.03)

    def test_nothing_before_or_behind_is_no_pause(self):
        self.assertIsNone(storm.longest_pause(self.TIMES, -1, 9))
        self.assertIsNone(storm.longest_pause(self.TIMES, 1.2, 9))


if __name__ == "__main__":
    unittest.main()
