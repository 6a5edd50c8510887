"""Names and texts of the simulated app: scenarios, categories, titles, creators, attributes."""

import numpy as np

from msrec.data.schema import Scenario

SCENARIOS = (
    Scenario(
        name="search",
        description="Videos shown after the user typed a query; the user knows what they want.",
    ),
    Scenario(
        name="feed", description="The endless feed of recommended videos that opens with the app."
    ),
    Scenario(
        name="friends",
        description="Videos that friends of the user liked or shared; seen for company as well.",
    ),
)
SCENARIO_NAMES = [scenario.name for scenario in SCENARIOS]

FAMILIES = {
    "food": {
        "baking": ("sourdough bread", "chocolate cake", "apple pie", "cinnamon rolls"),
        "street food": ("tacos", "noodle stalls", "dumplings", "night market snacks"),
        "healthy cooking": ("lentil salad", "meal prep bowls", "vegan curry", "oat breakfasts"),
        "coffee": ("latte art", "espresso at home", "cold brew", "pour-over coffee"),
    },
    "sport": {
        "football": ("free kicks", "penalty saves", "derby goals", "dribbling drills"),
        "basketball": ("three-pointers", "crossover moves", "slam dunks", "street games"),
        "running": ("marathon training", "trail runs", "interval sessions", "running shoes"),
        "yoga": ("morning stretches", "balance poses", "breathing exercises", "back relief"),
    },
    "technology": {
        "gaming": ("boss fights", "speedruns", "indie games", "building worlds"),
        "gadgets": ("phone cameras", "smart watches", "headphones", "foldable screens"),
        "coding": ("Python tricks", "web apps", "sorting algorithms", "debugging stories"),
        "science": ("black holes", "volcanoes", "deep sea robots", "chemistry experiments"),
    },
    "culture": {
        "pop music": ("acoustic covers", "concert moments", "new singles", "vocal harmonies"),
        "film reviews": ("plot twists", "thriller endings", "animated films", "classic cinema"),
        "painting": ("watercolour skies", "oil portraits", "ink sketches", "mural walls"),
        "dance": ("hip-hop steps", "salsa turns", "ballet basics", "group choreography"),
    },
    "life": {
        "travel": ("island beaches", "train journeys", "mountain villages", "city weekends"),
        "pets": ("sleepy cats", "puppy training", "rescued parrots", "rabbit homes"),
        "gardening": ("tomato plants", "balcony herbs", "rose pruning", "compost"),
        "fashion": ("winter coats", "thrift finds", "sneaker outfits", "linen dresses"),
    },
}
CATEGORIES = [name for family in FAMILIES.values() for name in family]
FAMILY_OF = np.repeat(np.arange(len(FAMILIES)), [len(family) for family in FAMILIES.values()])

_SUBJECTS = [subjects for family in FAMILIES.values() for subjects in family.values()]
_FRAMES = (
    "{}: a beginner's guide",
    "The best {} of this week",
    "I tried {} for 30 days",
    "{} in under a minute",
    "Five mistakes with {}",
    "What nobody tells you about {}",
    "A day full of {}",
    "My favourite {} so far",
)
_NAMES = ("Mia", "Jonas", "Aisha", "Chen", "Lucia", "Omar", "Priya", "Noah", "Yuki", "Elena")

AGE_BANDS = ("under 18", "18-24", "25-34", "35-49", "50 and older")
CITY_TIERS = ("large city", "medium-sized city", "small town", "countryside")


def title(category: int, subject: int, frame: int) -> str:
    """Returns a readable title; `subject` and `frame` are any numbers from 0.

    Example:
        >>> title(CATEGORIES.index("baking"), subject=1, frame=4)
        'Five mistakes with chocolate cake'
    """
    words = _SUBJECTS[category]
    text = _FRAMES[frame % len(_FRAMES)].format(words[subject % len(words)])
    return text[0].upper() + text[1:]


def creator_name(number: int, category: int) -> str:
    """Returns the name of creator 0, 1, ... of a category.

    Example:
        >>> creator_name(3, CATEGORIES.index("coffee")), creator_name(13, 3)
        ('Chen on coffee', 'Chen on coffee 2')
    """
    turn, name = divmod(number, len(_NAMES))
    return f"{_NAMES[name]} on {CATEGORIES[category]}" + (f" {turn + 1}" if turn else "")
