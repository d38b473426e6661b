import pandas as pd
import pytest
from support.runs_of_methods import SEVERAL, run

from latteclip.evaluate import published
from latteclip.evaluate.summary import summary


def test_the_gain_is_over_the_paper_s_datasets_alone():
    """20 points on dtd, 5 on eurosat, but not those on mine."""
    table = summary(pd.DataFrame(SEVERAL), "zero_shot")
    assert published.gain_on_datasets(table) == (pytest.approx(12.5), 2)


def test_without_the_paper_s_datasets_there_is_no_gain():
    one = summary(pd.DataFrame([run("mine", "zero_shot", 0, 0.4)]), "zero_shot")
    assert published.gain_on_datasets(one) == (None, 0)
