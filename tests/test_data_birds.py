"""Kinds of birds from CUB's class names."""

from hf_lskd.data.birds import groups_of_birds


def test_the_last_word_is_the_group() -> None:
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "126.Nelson_Sharp_tailed_Sparrow", "017.Cardinal"]
    assert groups_of_birds(names) == ("Albatross", "Albatross", "Sparrow", "Cardinal")


def test_numbers_and_spaces_change_nothing() -> None:
    assert groups_of_birds(["Great_Grey_Shrike", "Great Grey Shrike", "112.Great_Grey_Shrike"]) == ("Shrike",) * 3


def test_relatives_under_other_names_are_of_the_family() -> None:
    relatives = {
        "200.Common_Yellowthroat": "Warbler",
        "184.Louisiana_Waterthrush": "Warbler",
        "078.Gray_Kingbird": "Flycatcher",
        "103.Sayornis": "Flycatcher",
        "110.Geococcyx": "Cuckoo",
        "105.Whip_poor_Will": "Nightjar",
        "022.Chuck_will_Widow": "Nightjar",
        "092.Nighthawk": "Nightjar",
        "036.Northern_Flicker": "Woodpecker",
        "084.Red_legged_Kittiwake": "Gull",
        "070.Green_Violetear": "Hummingbird",
        "076.Dark_eyed_Junco": "Sparrow",
    }
    assert dict(zip(relatives, groups_of_birds(list(relatives)))) == relatives
    assert groups_of_birds(["029.American_Crow", "107.Common_Raven"]) == ("Crow", "Raven")  # these are left apart
