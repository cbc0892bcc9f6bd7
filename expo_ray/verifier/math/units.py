r"""Quantities: a value with money, percent, degrees, a unit or counted things behind or before it."""

import re
from dataclasses import dataclass
from fractions import Fraction

from expo_ray.verifier.math.number import from_words, rational


@dataclass(frozen=True, slots=True)
class Unit:
    """What is measured, in which size, to which power. Equal units have equal fields."""

    dimension: str
    factor: Fraction = Fraction(1)
    power: int = 1


@dataclass(frozen=True, slots=True)
class Quantity:
    """`value` is the cleaned text of the number without its unit."""

    value: str
    unit: Unit | None


# Dimension, then names and short forms with their size; tests compare the sizes with pint's. A * takes SI prefixes.
_UNITS = """
length: meter*=1 metre*=1 m*=1 inch=127/5000 inches=127/5000 in=127/5000 foot=381/1250 feet=381/1250 ft=381/1250 yard=1143/1250
  yd=1143/1250 mile=201168/125 mi=201168/125 angstrom=1/10000000000 furlong=25146/125 fathom=1143/625 league=603504/125 micron=1/1000000
  lightyear=9460730472580800 light-year=9460730472580800 厘米=1/100 米=1 千米=1000 公里=1000 毫米=1/1000
mass: gram*=1 g*=1 gm=1 tonne=1000000 克=1 千克=1000 公斤=1000 吨=1000000
ton: ton=1
weight: lb=16 pound=16 oz=1 ounce=1
volume: liter*=1 litre*=1 l*=1 L*=1 cc=1/1000 升=1 毫升=1/1000
liquid: gallon=128 gal=128 quart=32 qt=32 pint=16 pt=16 cup=8 tablespoon=1/2 tbsp=1/2 teaspoon=1/6 tsp=1/6
time: second*=1 sec=1 s*=1 minute=60 min=60 hour=3600 hr=3600 h=3600 day=86400 week=604800 秒=1 分钟=60 分=60 小时=3600 时=3600 天=86400
month: month=1 year=12 yr=12 decade=120 century=1200 centuries=1200 岁=12 年=12
usd: dollar=1 usd=1 buck=1 us-dollar=1 cent=1/100 penny=1/100 pennies=1/100 nickel=1/20 dime=1/10 quarter=1/4
degree: degree=1 deg=1
radian: radian=1 rad=1
angle-part: arcminute=60 arcsecond=1
length/time: mph=1397/3125 kph=5/18 kmph=5/18 kmh=5/18 knot=463/900
force: newton*=1 N*=1
energy: joule*=1 J*=1 kwh=3600000 calorie=523/125
power: watt*=1 W*=1
pressure: pascal*=1 Pa*=1 atm=101325
charge: coulomb*=1
voltage: volt*=1 V*=1
current: ampere*=1 amp*=1
resistance: ohm*=1
frequency: hertz*=1 Hz*=1
temperature: kelvin=1
substance: mole=1 mol=1
information: byte*=1 bit*=1/8
area: acre=1 hectare=15625/6323
euro: euro=1
sterling: sterling=1
rupee: rupee=1 rs=1
yen: yen=1 yuan=1 元=1
"""
_PREFIXES = {"kilo": 1000, "k": 1000, "mega": 10**6, "M": 10**6, "giga": 10**9, "G": 10**9, "deci": Fraction(1, 10), "d": Fraction(1, 10)}
_PREFIXES |= {"centi": Fraction(1, 100), "c": Fraction(1, 100), "milli": Fraction(1, 1000), "m": Fraction(1, 1000)}
_PREFIXES |= {"micro": Fraction(1, 10**6), "u": Fraction(1, 10**6), "nano": Fraction(1, 10**9), "n": Fraction(1, 10**9), "deca": 10}
# What is counted: may stand behind a number and be left out. Frequent in the training questions of MATH and GSM8K.
_COUNTED = """
acorn adult animal apple arrangement automobile bag ball balloon banana bar basket bead bean bear bee bicycle bike bill bird block board
boat bone book bottle bowl box bracelet branch brick brownie bug bunch bus button cake candle candy car card carrot carton case cat chair
chicken child choice chocolate circle class classroom clip clown coin color combination committee container cookie corner cow cracker
crate crayon cupcake customer desk diagonal digit divisor doctor dog doll donut door duck edge egg element elephant employee envelope
episode equation error event face factor family fan fish flag floor flower friend frog fruit function game gift girl glass goal goat
grade grape group guest handshake hat head hen home horse house hundredth-place idea integer item jar jellybean job key kid kitten lamp
lap leaf leg legos lemon letter line loaf lollipop man marble mark match meal member message mile-marker minute-hand mistake mouse movie
muffin multiple neighbor newspaper night notebook number object orange order outcome owl ox page painting pair pancake paper parent part
participant passenger path pear pen pencil people peach person pet phone photo picture pie piece pig pill pizza place plane plant plate
player point pole polygon pot potato present prime prize problem puppy pupil question rabbit rectangle ribbon ring rock roll room root
rose round row sale sandwich score seat seed segment sequence set shape sheep sheet shelf shell shirt shoe shot side sister slice snack
soda solution song space spoon spot square stamp star step stick sticker stone story string student subset sum sweet table tank task
teacher team term test thing ticket tile time tire tomato toy train tray treat tree triangle trip triple truck tulip unit value vase
vegetable vehicle vertex visitor volunteer vote watermelon way wheel widget window woman word worker zebra zero boy card
个 人 种 只 条 本 张 次 名 辆 棵 台 位 件 颗 块 页 根 匹 头 支 岁数
""".split()
_IRREGULAR = "men women children people feet mice geese teeth leaves loaves shelves halves vertices knives wives"
_ADJECTIVES = frozenset(
    "total different distinct possible more-than positive negative whole right left remaining such of the us real full new old small large"
    .split()
)
_TAIL = re.compile(
    r"(?P<value>[+-]?.*?[0-9}\)a-z!])(?P<degree>\\degree)?"
    r"(?P<words> ?\(?\\text\{[^{}]*\}.*|\([a-z ]{3,}\)| [A-Za-z(][A-Za-z. /()^{}0-9-]*|(?<![A-Za-z\\])[A-Za-z][A-Za-z. /]*)",
    re.DOTALL,
)
_OF_WHAT = r" ?\\text\{ ?(?:increase|decrease|discount|profit|gain|loss|chance|interest|off|of [a-z ]+) ?\}$"
_SHORT = frozenset("m g l s h L N J W V K".split())
_PART = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)? *(?P<unit>[A-Za-z.一-鿿-]+(?: of [a-z]+)?)")


def _table() -> dict[str, Unit]:
    table = {}
    for dimension, names in re.findall(r"^(\S+): ((?:.*)(?:\n  .*)*)", _UNITS, re.MULTILINE):
        for entry in names.split():
            name, size = entry.split("=")
            prefixes = _PREFIXES if name.endswith("*") else {}
            name = name.rstrip("*")
            table[name] = Unit(dimension, Fraction(size))
            for prefix, factor in prefixes.items():
                if (len(prefix) > 2) == (len(name) > 2):
                    table.setdefault(prefix + name, Unit(dimension, Fraction(size) * factor))
    return table


TABLE = _table()
DEGREE, RADIAN, DOLLAR = TABLE["degree"], TABLE["radian"], TABLE["dollar"]
PERCENT = Unit("percent", Fraction(1, 100))
_NOUNS = frozenset(_COUNTED) | frozenset(_IRREGULAR.split())


def quantity(text: str, any_plural: bool = False) -> Quantity:
    r"""Split a cleaned answer into its value and unit; the unit is None where there is none or it is not one.

    any_plural: any noun in the plural may be what is counted; meant for gold answers, which nobody games.

    >>> quantity(r"5\text{ square feet}").unit.power
    2
    """
    text = re.sub(r"(?<=[0-9])\\Omega$", r"\\text{ ohm}", re.sub(r"\\%" + _OF_WHAT, r"\\%", text))
    if text.endswith("\\%"):
        return Quantity(text[:-2].strip(), PERCENT)
    modulus = re.fullmatch(r"(.+?)\(?\\pmod\{(.+)\}\)?", text)
    if modulus:
        return Quantity(modulus.group(1).strip(), Unit("mod " + modulus.group(2)))
    if text.endswith("\\degree") and not re.search(r"\\(?:sin|cos|tan|sec|csc|cot|cis)", text):
        return Quantity(text[: -len("\\degree")].strip(), DEGREE)
    match = re.fullmatch(r"([+-]?)\\\$ ?([+-]?.+)|(.+)\\\$", text)
    if match:
        inner = quantity((match.group(1) or "") + (match.group(2) or match.group(3)))
        return Quantity(inner.value, DOLLAR) if inner.unit in (None, DOLLAR) else Quantity(text, None)
    match = _TAIL.fullmatch(text)
    return (_from_tail(match, any_plural) if match else None) or Quantity(text, None)


def _from_tail(match: re.Match[str], any_plural: bool) -> Quantity | None:
    value, tail = match.group("value"), match.group("words")
    bare = "\\text" not in tail
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", tail).replace("^{", "^").replace("}", "").strip(" .,")
    words = re.sub(r"^\((.*)\)$|\(s\)", r"\1", words).strip()
    if bare and not _bare_is_unit(value, tail, words):
        return None
    if match.group("degree"):
        scale = words.lower().strip(". ")
        name = {"f": "fahrenheit", "c": "celsius"}.get(scale, scale)
        return Quantity(value, Unit(name)) if name in ("fahrenheit", "celsius") else None
    if words.lower() in ("degrees celsius", "degrees fahrenheit", "celsius", "fahrenheit"):
        return Quantity(value, Unit(words.lower().split()[-1]))
    plain = words.replace("-", " ").split()
    for count in range(min(len(plain), 6), 0, -1):
        scaled = from_words(" ".join([value, *plain[:count]])) if rational(value) is not None else None
        if scaled is not None:
            unit = unit_of(" ".join(plain[count:]), any_plural) if plain[count:] else None
            return None if plain[count:] and unit is None else Quantity(_fraction(scaled), unit)
    unit = unit_of(words, any_plural)
    return _compound(value, words) if unit is None else Quantity(value, unit)


def _fraction(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _compound(value: str, words: str) -> Quantity | None:
    """`2 hours and 30 minutes` in hours: parts of one dimension, each smaller than the one before."""
    parts = list(_PART.finditer(f"{value} {re.sub(r',? and |,', ' ', words)}"))
    if "".join(part.group() for part in parts).replace(" ", "") != f"{value}{re.sub(r',? and |,', ' ', words)}".replace(" ", ""):
        return None
    units = [unit_of(part.group("unit"), False) for part in parts]
    known = [unit for unit in units if unit is not None]
    if len(parts) < 2 or len(known) < len(parts) or any(part.group("number") is None for part in parts):
        return None
    if len({(unit.dimension, unit.power) for unit in known}) > 1 or sorted(known, key=lambda u: -u.factor) != known:
        return None
    total = sum(Fraction(part.group("number")) * unit.factor for part, unit in zip(parts, known, strict=True))
    return Quantity(_fraction(total / known[0].factor), known[0])


def _bare_is_unit(value: str, bare: str, words: str) -> bool:
    r"""Letters without `\text` are a unit only behind a number, and a single letter only behind a space."""
    if not re.search(r"[0-9})]$", value) or re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value)):
        return False
    if len(words) == 1:
        return bare.startswith(" ") and words in _SHORT
    return bare[0] in " (" or re.sub(r"s?\.?$", "", words.lower()) in TABLE


def unit_of(words: str, any_plural: bool) -> Unit | None:
    """The unit or the counted things that a phrase names; None where it names neither."""
    phrase = re.sub(r"\s+", " ", words).strip(" .,")
    phrase = re.sub(r"^(?:sq\.?|square[ds]?) (.+)$", r"\1^2", re.sub(r"^(?:cu\.?|cubic) (.+)$", r"\1^3", phrase))
    phrase = re.sub(r"^平方", "sq ", re.sub(r"^立方", "cu ", phrase)) if phrase[:1] in "平立" and phrase else phrase
    if phrase.startswith(("sq ", "cu ")):
        phrase = f"{phrase[3:]}^{2 if phrase[0] == 's' else 3}"
    phrase = re.sub(r"^(.+) ([A-Za-z]+)\^-1$", r"\1/\2", re.sub(r"^(.+) ([A-Za-z]+)\^-([23])$", r"\1/\2^\3", phrase))
    rate = re.split(r"\s*/\s*|\s+per\s+(?:an?\s+)?|\s+an?\s+", phrase)
    if len(rate) == 2 and all(rate):
        top, bottom = unit_of(rate[0], any_plural), unit_of(rate[1], True)
        if top is None or bottom is None:
            return None
        power = f"^{bottom.power}" if bottom.power > 1 else ""
        return Unit(f"{top.dimension}/{bottom.dimension}{power}", top.factor / bottom.factor, top.power)
    phrase = re.sub(r" (?:of|in|on|for|from|with|left|in total|altogether|long|tall|old|each)( [^^]*)?$", "", phrase)
    match = re.fullmatch(r"(.+?)\s*\^\s*([23])|(.+)", phrase)
    if match is None:
        return None
    name, power = (match.group(1) or match.group(3)), int(match.group(2) or 1)
    single = re.sub(r"(?<=[a-zA-Z]{2})s$", "", name.rstrip("."))
    lowered = [form.lower() for form in (name.rstrip("."), single)] if len(name) > 2 else []
    known = next((TABLE[form] for form in (name, single, *lowered) if form in TABLE), None)
    if known is not None:
        return Unit(known.dimension, known.factor**power, power)
    return _counted(name.lower(), power, any_plural)


def _counted(phrase: str, power: int, any_plural: bool) -> Unit | None:
    words = phrase.split()
    if not words or len(words) > 3 or not all(re.fullmatch(r"[a-z'-]+|[一-鿿]+", word) for word in words):
        return None
    *before, noun = words
    forms = {noun, re.sub("s$", "", noun), re.sub("es$", "", noun), re.sub("ies$", "y", noun)}
    named = bool(forms & _NOUNS)
    plural = any_plural and re.fullmatch(r"[a-z]{2,}[a-rt-z]s", noun) is not None and from_words(f"2 {noun}") is None
    if not (named or plural) or not all(word in _ADJECTIVES or any_plural or _counted(word, 1, False) for word in before):
        return None
    return Unit(min(forms & _NOUNS, key=len) if named and not before else phrase.removesuffix("s"), Fraction(1), power)
