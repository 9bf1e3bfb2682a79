#!/usr/bin/env python3
"""Writes config/phrases/events.txt: everyday events in words, for models that know actions.

Usage: python scripts/event_phrases.py

Each line of EVENTS is a sentence: words in <...> stand for a list of LISTS, words in (a|b) for one
of them, and the sentence is written once for every choice.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "config" / "phrases" / "events.txt"
HEAD = """\
# Everyday events, one a line, as a camera may see them. Made by scripts/event_phrases.py.
"""

LISTS = {
    "door": "a door, a drawer, a window, a fridge, an oven, a microwave, a cupboard, a wardrobe, "
    "a suitcase, a gate, a dishwasher, a washing machine, a car door, a garage door, a toolbox, "
    "a safe, a locker, a mailbox",
    "lidded": "a box, a jar, a bottle, a can of drink, a book, a laptop, an umbrella, an envelope, "
    "a parcel, a backpack, a handbag, a lunch box, a bag of crisps, a tube of toothpaste",
    "small": "a cup, a mug, a glass, a bottle, a plate, a bowl, a spoon, a fork, a knife, a phone, "
    "a pen, a book, a key, a remote control, a ball, a toy, a box, a bag, an apple, a banana, "
    "a towel, a shoe, a hat, a newspaper, a hammer, a screwdriver, a cable, a sponge, a can, "
    "a pair of scissors",
    "liquid": "water, milk, juice, coffee, tea, wine, oil, soup",
    "vessel": "a glass, a cup, a bowl, a pot",
    "cut": "bread, an apple, an onion, a tomato, a carrot, a cucumber, cheese, meat, a cake, "
    "a pizza, a melon, a potato, paper, cardboard, a rope, fabric",
    "eaten": "an apple, a banana, a sandwich, a pizza, soup, salad, noodles, ice cream, a cake, "
    "crisps, breakfast, a biscuit",
    "drunk": "water, coffee, tea, juice, milk, beer, from a bottle, from a can",
    "cooked": "an egg, vegetables, meat, fish, pasta, rice, pancakes, soup",
    "washed": "the dishes, a glass, their hands, their face, vegetables, a window, a car, a dog, "
    "clothes, the floor",
    "wiped": "a table, a window, a whiteboard, a mirror, the floor, a counter, a screen, a plate, "
    "their glasses",
    "worn": "a jacket, a coat, a hat, a helmet, gloves, glasses, shoes, a scarf, a mask, "
    "headphones, a backpack, a seat belt, an apron, a watch, a sweater",
    "folded": "a towel, a shirt, a blanket, a piece of paper, trousers, a map, a cardboard box",
    "carried": "a box, a bag, a suitcase, a chair, a ladder, a tray, a baby, a bicycle, a plank, "
    "a stack of books, a crate of bottles, shopping bags, a table, a plant, a bucket",
    "pushed": "a trolley, a pram, a wheelchair, a chair, a table, a box, a bicycle, a car, a cart, "
    "a lawnmower, a door, a button",
    "thrown": "a ball, a stone, a paper plane, a frisbee, a snowball, a bottle, a stick, a pillow",
    "switched": "a lamp, the light, a television, a computer, a fan, a kettle, a radio, a stove, "
    "a tap, a vacuum cleaner",
    "repaired": "a bicycle, a car, a computer, a chair, a pipe, a clock, a lamp, a shoe, a wall, "
    "a machine",
    "tool": "a hammer, a drill, a saw, a screwdriver, a spanner, a paintbrush, a sewing machine, "
    "a soldering iron, a shovel, a rake, a broom, a mop, a vacuum cleaner, a hair dryer, an iron, "
    "a computer, a calculator, a camera, a microscope, a printer, a coffee machine",
    "instrument": "the guitar, the piano, the violin, the drums, the flute, the trumpet, "
    "the accordion, the cello, the harmonica, the saxophone",
    "game": "football, basketball, tennis, table tennis, volleyball, badminton, golf, baseball, "
    "cards, chess, a board game, a video game, hide and seek, bowling, darts, billiards",
    "sport": "runs, jumps, swims, dances, skates, skis, climbs, surfs, does push-ups, does yoga, "
    "lifts weights, skips with a rope, does a handstand, stretches, boxes, cycles, rows a boat, "
    "does a somersault, rides a skateboard, rides a scooter, rides a horse",
    "place": "a room, a kitchen, a house, a shop, a lift, a car, a bus, a train, an office, "
    "a corridor, a garage, a garden",
    "seat": "a chair, a sofa, a bench, a bed, the floor, a stool, the stairs, an armchair",
    "vehicle": "a car, a bus, a lorry, a van, a motorbike, a bicycle, a tram, a taxi, a tractor, "
    "an ambulance, a fire engine, a police car",
    "animal": "a dog, a cat, a bird, a horse, a cow, a sheep, a duck, a squirrel, a rabbit, "
    "a chicken",
    "tabletop": "a table, a shelf, a counter, the floor",
    "container": "a box, a bag, a drawer, a basket, a cupboard, a bin",
    "storable": "a cup, a bottle, a plate, a book, a phone, a toy, an apple, a shoe, a tool, "
    "a towel, a ball, a tin",
    "breakable": "a glass, a plate, a vase, a bottle, an egg, a window, a mug, a mirror",
    "fallen": "a cup, a bottle, a book, a box, a ball, a vase, a phone, a plant pot, a chair, "
    "a ladder, a picture, a tree, a lamp, a pile of boxes",
    "gesture": "waves, claps, points at something, nods, shakes their head, shrugs, gives a thumbs "
    "up, raises a hand, folds their arms, bows, blows a kiss, snaps their fingers, covers their "
    "face, scratches their head, rubs their eyes, yawns, sneezes, coughs, laughs, cries, smiles, "
    "shouts, sings, whistles, talks, whispers, stretches their arms, looks around, looks up, "
    "looks at their watch, looks at the camera, looks out of the window, closes their eyes",
    "screen": "a phone, a laptop, a tablet, a television, a computer",
    "read": "a book, a newspaper, a letter, a menu, a map, a magazine, a sign, a label",
    "written": "a letter, on a whiteboard, on paper, in a notebook, on a blackboard, a list",
    "painted": "a wall, a picture, a fence, a chair, their nails, a door, a toy",
    "planted": "a tree, flowers, seeds, vegetables",
    "watered": "flowers, a plant, the lawn, a tree, vegetables",
    "part": "a part, a component, a cube, a block, a screw, a gear, a bottle, a box, a cup, a bag, "
    "a circuit board, a tray, a tube, a cloth, a sponge, a plate, a pen, a ball, a tool, an apple",
    "two": "shake hands, hug, kiss, talk, argue, fight, dance, play cards, eat together, "
    "walk side by side, sit at a table, carry a table, carry a sofa, high-five, take a selfie, "
    "look at a screen, read together, run a race, ride bicycles, wait in a queue, cook together, "
    "work at computers, wave to each other, exchange a parcel, toast with glasses, play chess, "
    "play football, sit on a bench, stand and talk, push a car, climb a rock",
}

EVENTS = r"""
a person (opens|closes|stands in front of) <door>
a person (locks|unlocks) (a door|a gate|a car|a safe|a bicycle|a locker|a suitcase|a window)
a person (opens|closes) <lidded>
a person (picks up|puts down|drops|looks at|holds|moves|hands over|reaches for|throws away) \
<small>
a person pours <liquid> into <vessel>
a person spills <liquid>
a person (drinks) <drunk>
a person (eats) <eaten>
a person (cuts) <cut>
a person peels (an apple|a banana|an orange|a potato|a carrot|an egg|an onion)
a person (cooks|fries) <cooked>
a person stirs (a pot|a cup of coffee|soup|a bowl of dough|paint)
a person (washes|dries) <washed>
a person wipes <wiped>
a person (puts on|takes off) <worn>
a person (folds|unfolds) <folded>
a person (carries|lifts|sets down) <carried>
a person (pushes|pulls) <pushed>
a person (throws|catches) <thrown>
a person kicks (a ball|a stone|a box|a door|a can)
a person (switches on|switches off) <switched>
a person (repairs|takes apart) <repaired>
a person (uses|cleans) <tool>
a person plays <instrument>
(a person plays|two people play|children play) <game>
(a person|a child) <sport>
a person (enters|leaves) <place>
a person (sits down on|sits on|gets up from|lies on) <seat>
a person (gets into|gets out of|drives) (a car|a bus|a lorry|a van|a taxi|a tractor)
a person (gets on|gets off) (a bicycle|a motorbike|a horse|a train|a bus|a boat)
a person rides (a bicycle|a motorbike|a horse|an escalator|a lift|a sledge|an elephant)
a person (walks up|walks down|runs up|falls down) (the stairs|a hill|a ladder|a ramp)
a person walks (away|towards the camera|past|across the street|through a door|backwards|along a \
corridor|on a beach|in the rain|in the snow|a dog|on crutches|with a stick|barefoot|in circles)
a person (<gesture>)
a person (looks at|types on|points at) <screen>
a person reads <read>
a person writes <written>
a person (paints) <painted>
a person draws (a picture|a line|a face|a map|with chalk)
a person (plants) <planted>
a person waters <watered>
a person (puts|lays) <storable> on <tabletop>
a person (puts) <storable> into <container>
a person takes <storable> (out of) <container>
a person takes <storable> off a table
a person breaks <breakable>
a person (feeds|strokes|chases) <animal>
a person (stacks|counts|sorts|unpacks|moves) \
(boxes|books|plates|bottles|coins|tools|chairs|parcels)
a person (brushes their teeth|combs their hair|shaves|puts on make-up|cuts hair|ties their \
shoes|ties a knot|buttons a shirt|zips up a jacket|rolls up a sleeve|makes a bed|sets a \
table|clears a table|loads a dishwasher|hangs up clothes|irons a shirt|sweeps the floor|mops the \
floor|takes out the rubbish|lights a candle|blows out a candle|strikes a match|smokes a \
cigarette|wraps a present|unwraps a present|mows the lawn|shovels snow|rakes leaves|chops \
wood|digs a hole|picks flowers|picks fruit|milks a cow|catches a fish|pitches a tent|makes a \
fire|roasts a marshmallow|kneads dough|rolls out dough|cracks an egg|grates cheese|squeezes a \
lemon|toasts bread|butters bread|makes a sandwich|makes coffee|makes tea|fills a kettle|turns a \
page|turns a key in a lock|rings a doorbell|knocks on a door|presses a button|turns a knob|pulls a \
lever|plugs in a cable|unplugs a cable|changes a light bulb|changes a tyre|pumps up a tyre|fills \
up a car|washes a car|tightens a screw|hammers a nail|drills a hole|saws a plank|sands a \
plank|measures a table|lays bricks|climbs a ladder|hangs a picture|assembles furniture|takes a \
photo|makes a phone call|sends a message|puts on a bandage|takes a pill|takes a temperature|pushes \
a shopping trolley|pays at a till|scans a barcode|weighs fruit|sticks on a stamp|posts a \
letter|signs a paper|stamps a paper|staples paper|tears paper|crumples paper|cuts out a \
shape|glues paper|blows up a balloon|bursts a balloon|blows bubbles|flies a kite|builds a tower of \
blocks|knocks over a tower|solves a puzzle|shuffles cards|deals cards|rolls dice|juggles|does a \
magic trick|spins around|hops on one leg|crawls on the floor|kneels down|crouches|stands up|lies \
down|falls over|faints|sleeps|wakes up|trips over something|slips on \
ice|limps|tiptoes|marches|leans against a wall|hides behind a door|waits at a bus stop|crosses the \
road|stands still|works at a desk|gives a talk|listens to music|watches television|plays with a \
dog|plays with a child|carries a child|pushes a child on a swing|holds a baby|helps somebody \
up|gives somebody a massage|bandages a hand|measures blood pressure)
(a child|a baby) (plays with a toy|cries|laughs|crawls|sleeps|eats|drinks from a \
bottle|waves|reaches for a toy|throws a toy|sits on the floor)
a child (slides down a slide|swings on a swing|builds a sandcastle|jumps on a trampoline|jumps \
into a puddle|draws a picture|rides a tricycle|climbs a tree|runs to its mother|hides under a \
table|flies a kite|feeds ducks|blows bubbles|does homework|puts on shoes|chases a ball|learns to \
walk)
two people <two>
several people (stand around|sit around a table|walk past|run|dance|cheer|clap|wait in a \
queue|talk|get on a bus|get off a train|cross the street|play music|eat dinner|watch a screen|row \
a boat|take a group photo|sit in a meeting|leave a building|enter a room)
(a person|nobody) (is in the room)
a person (walks into|walks out of|runs through|stands at the edge of) the picture
(a hand|a robot arm) (reaches for|picks up|puts down|pushes|lets go of|turns over|slides|holds) \
<part>
a robot arm (drops|moves away from|grasps|lifts|misses) <part>
a robot arm (puts) (a part|a cube|a bottle|a box|a cup|a plate|a tool|an apple|a bag|a screw) \
(into a box|on a table|into a bin|on a conveyor belt|on a shelf|into a drawer|on a plate)
a robot arm (opens|closes) (a drawer|a door|a box|a cupboard|a gripper|a microwave|a lid|a fridge)
a robot arm (stands still|moves to the left|moves to the right|moves up|moves down|returns to its \
rest position|waves|wipes a table|sweeps a table|stirs a pot|pours water into a cup|pours beans \
into a bowl|stacks blocks|stacks cups|folds a towel|folds a shirt|presses a button|turns a \
knob|turns a tap|flips a switch|pulls a lever|screws in a screw|tightens a bolt|plugs in a \
cable|unplugs a cable|inserts a peg into a hole|takes a part off a conveyor belt|hands something \
to a person|takes something from a person|sorts parts|welds a seam|paints a car door|knocks \
something over|bumps into something)
(a mobile robot|a robot vacuum cleaner) (drives forwards|drives backwards|turns around|stops|bumps \
into a wall|drives around an obstacle|drives through a door|waits|follows a person)
(a drone) (takes off|lands|hovers|flies past|crashes)
a forklift (lifts a pallet|sets down a pallet|drives past|turns round)
<vehicle> (drives past|stops|turns left|turns right|starts moving|reverses|parks|waits at a \
traffic light|crosses a bridge|overtakes)
(a train|a boat|a plane|a helicopter) (arrives|leaves|passes|stands still)
a car (crashes into a wall|skids|splashes through a puddle|is towed away|enters a car park|leaves \
a car park|drives onto a ferry|has a flat tyre)
<animal> (runs|eats|drinks|sleeps|walks past|jumps|looks around|sits still|runs away)
a dog (barks|fetches a stick|catches a ball|wags its tail|digs a hole|chases a cat|shakes itself \
dry|rolls over|begs for food|pulls at its lead|swims|gnaws at a bone|sits down|lies down)
a cat (climbs a tree|jumps onto a table|plays with a ball of wool|licks its paw|scratches a \
sofa|hides under a bed|catches a mouse|stretches|curls up)
a bird (flies away|lands on a branch|builds a nest|pecks at seeds|sings|feeds its young)
<fallen> (falls over|falls down)
(a ball|a bottle|a tin|a barrel|a wheel|an orange|a coin|a pen) (rolls|rolls off a table|stops \
rolling|bounces|spins)
(water|milk|juice|coffee|paint) (is poured out|is spilled|drips|boils over|runs down)
(a door|a gate|a window|a lift door|a curtain|a garage door) (opens|closes|swings in the wind)
(the light|a lamp|a screen|a traffic light|a candle|a fire) (goes on|goes out|flickers)
(a kettle boils|a pot boils over|toast pops up|bread burns|smoke rises|a fire burns|something \
burns|something explodes|a glass shatters|a balloon bursts|a tyre bursts|a machine starts|a \
machine stops|a conveyor belt moves|a conveyor belt stops|a wheel turns|a fan turns|a crane lifts \
a load|an excavator digs|a flag waves in the wind|leaves fall|a tree sways|rain falls|snow \
falls|hail falls|lightning flashes|waves break on a beach|a river flows|clouds pass|the sun \
rises|the sun sets|fireworks go off|confetti falls|a curtain moves|a clock ticks|a printer \
prints|a washing machine spins|a parcel is delivered|a table is laid|a room is tidied|a shelf is \
filled|a shelf is emptied)
(nothing happens|nothing moves|nobody is here|the room is empty|the table is empty|the street is \
empty|the corridor is empty|the picture is dark|the camera moves|the camera is covered|the camera \
turns|the picture is blurred)
"""

CHOICE = re.compile(r"\(([^()]*)\)")


def events() -> list[str]:
    """Every sentence, each once, in the order of EVENTS."""
    lines = EVENTS.replace("\\\n", "").strip().splitlines()
    return list(dict.fromkeys(sentence for line in lines for sentence in _choices(line)))


def _choices(line: str) -> Iterator[str]:
    """The sentences of one line."""
    spread = re.sub(r"<(\w+)>", lambda found: f"({LISTS[found[1]].replace(', ', '|')})", line)
    spread = spread.replace("((", "(").replace("))", ")")
    parts = CHOICE.split(spread)
    for chosen in itertools.product(*(part.split("|") for part in parts[1::2])):
        words = [word for pair in itertools.zip_longest(parts[::2], chosen) for word in pair]
        yield " ".join("".join(filter(None, words)).split())


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    FILE.write_text(HEAD + "\n".join(events()) + "\n", encoding="utf-8")
