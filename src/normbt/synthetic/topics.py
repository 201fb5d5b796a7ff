"""Everyday topics with good advice about each; neighbours are topics that a careless reader mixes up."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A goal, as it reads after "how do I", and six separate pieces of advice, each a full sentence."""

    goal: str
    advice: tuple[str, str, str, str, str, str]


# A topic is easier to read and to add as one block.
# fmt: off
#: Each row holds two neighbouring topics.
NEIGHBOURS: tuple[tuple[Topic, Topic], ...] = (
    (
        Topic("keep my houseplants healthy", (
            "Water only when the top of the soil feels dry.",
            "Turn the pots every week so the leaves get even light.",
            "Choose a container with holes so the roots can drain.",
            "Wipe dust off the leaves with a damp cloth.",
            "Move delicate plants away from cold windows and heaters.",
            "Check under the leaves for small insects.",
        )),
        Topic("start a small vegetable garden", (
            "Pick a bed that gets six hours of sun.",
            "Mix compost into the ground before you plant.",
            "Begin with lettuce, beans and radishes because they grow fast.",
            "Leave enough room between the rows to weed.",
            "Put a low fence around the bed to keep rabbits out.",
            "Sow a second row two weeks after the first.",
        )),
    ),
    (
        Topic("bake a good loaf of bread", (
            "Weigh the flour instead of using a cup.",
            "Knead the dough until it stretches without tearing.",
            "Let it rise in a warm place until it doubles.",
            "Heat the oven fully before the loaf goes in.",
            "Put a tray of water below the loaf for a crisp crust.",
            "Let the loaf cool for an hour before slicing it.",
        )),
        Topic("bake a moist chocolate cake", (
            "Use butter at room temperature so it mixes with the sugar.",
            "Add the eggs one at a time.",
            "Stir the batter only until the cocoa disappears.",
            "Line the tin with paper so the cake comes out whole.",
            "Take it out while a few crumbs still stick to a skewer.",
            "Brush the layers with a little syrup before the frosting.",
        )),
    ),
    (
        Topic("prepare for a job interview", (
            "Read about the company and its products.",
            "Practise two short stories about problems you solved.",
            "Bring printed copies of your resume.",
            "Prepare questions about the team you would join.",
            "Plan to arrive ten minutes early.",
            "Send a short thank-you message the next morning.",
        )),
        Topic("ask my manager for a raise", (
            "Write down what you achieved over the past year.",
            "Find out what similar roles pay elsewhere.",
            "Book a private meeting rather than asking in the hallway.",
            "Name one clear figure and then wait.",
            "Offer a date to talk again if the budget is closed.",
            "Keep your tone calm even if the reply is no.",
        )),
    ),
    (
        Topic("train for my first long run", (
            "Add distance slowly, about a tenth each week.",
            "Run most days at a pace where you can still talk.",
            "Buy shoes that fit and replace them when the soles wear down.",
            "Take at least one full rest day a week.",
            "Practise drinking small sips while you move.",
            "Sleep more in the last week than you usually do.",
        )),
        Topic("get ready for a long bike ride", (
            "Set the saddle so your knee stays slightly bent.",
            "Pump the tyres and oil the chain the evening before.",
            "Carry a spare tube and learn to change it.",
            "Wear padded shorts to avoid a sore seat.",
            "Shift to an easy gear before each hill.",
            "Look for cafes along the route where you can refill bottles.",
        )),
    ),
    (
        Topic("learn basic Spanish", (
            "Study twenty common words every day with cards.",
            "Listen to slow radio programmes while you cook.",
            "Label things at home with their foreign names.",
            "Find a partner who wants to swap languages.",
            "Repeat short dialogues aloud until they feel natural.",
            "Write three lines in a diary each evening.",
        )),
        Topic("learn to play the guitar", (
            "Tune the strings before every session.",
            "Learn three open chords and change between them slowly.",
            "Use a metronome and keep a steady beat.",
            "Press the strings close to the fret with your fingertips.",
            "Play short sessions so your fingers can harden.",
            "Choose an easy song you love as your first goal.",
        )),
    ),
    (
        Topic("save money on groceries", (
            "Plan the meals for the week before you shop.",
            "Buy rice, oats and beans in large bags.",
            "Compare the price per kilo rather than per packet.",
            "Freeze leftovers in small boxes.",
            "Pick fruit and vegetables that are in season.",
            "Never go to the store hungry.",
        )),
        Topic("lower my electricity bill", (
            "Replace old bulbs with efficient ones.",
            "Switch off devices at the wall instead of leaving them on standby.",
            "Wash clothes at a low temperature.",
            "Dry laundry on a rack when the weather allows.",
            "Seal gaps around doors to keep the heat in.",
            "Ask your supplier about a cheaper night tariff.",
        )),
    ),
    (
        Topic("sleep better at night", (
            "Go to bed at the same hour every day.",
            "Keep the bedroom dark, quiet and cool.",
            "Stop drinking coffee after lunch.",
            "Leave your phone in another room.",
            "Read a few calm pages before lights out.",
            "Get up for a while if you lie awake too long.",
        )),
        Topic("wake up earlier in the morning", (
            "Put the alarm across the room so you have to stand.",
            "Open the curtains as soon as you get up.",
            "Move your alarm forward by ten minutes every few days.",
            "Lay out your clothes the evening before.",
            "Plan a breakfast you look forward to.",
            "Resist the snooze button from the first day.",
        )),
    ),
    (
        Topic("introduce a new cat to my home", (
            "Give it one quiet room for the first days.",
            "Place the litter box far from the food bowl.",
            "Let it come to you rather than picking it up.",
            "Offer a scratching post near its favourite spot.",
            "Keep windows closed until it knows the place.",
            "Play with a feather toy to build trust.",
        )),
        Topic("teach my puppy to walk on a leash", (
            "Let it wear the collar indoors first.",
            "Stop walking every time the leash becomes tight.",
            "Reward it with a treat when it stays at your side.",
            "Practise in a quiet street before busy parks.",
            "Keep each lesson shorter than ten minutes.",
            "Use a harness that does not press on the throat.",
        )),
    ),
    (
        Topic("pack for a week of hiking", (
            "Choose boots that you have already broken in.",
            "Roll clothes in layers for cold and warm hours.",
            "Bring a paper map besides your phone.",
            "Carry a filter so you can drink from streams.",
            "Put heavy things close to your back.",
            "Add blister plasters to a small first-aid kit.",
        )),
        Topic("plan a week at the beach", (
            "Book a room within walking distance of the sea.",
            "Bring strong sunscreen and a wide hat.",
            "Check when the tides are low for safe swimming.",
            "Take a light blanket and an umbrella for shade.",
            "Reserve a boat trip before you arrive.",
            "Keep one free day for rain and museums.",
        )),
    ),
    (
        Topic("give a clear presentation", (
            "Begin with the one message people should remember.",
            "Use large pictures and few words on each slide.",
            "Rehearse aloud with a timer.",
            "Look at different people around the audience.",
            "Pause after each important point.",
            "Have a backup copy of the slides on a stick.",
        )),
        Topic("write a clear report", (
            "Put the conclusion in the first paragraph.",
            "Use headings that say what each section claims.",
            "Replace long words with short ones.",
            "Explain each table in one line below it.",
            "Ask a colleague to mark the parts that confuse them.",
            "Cut every sentence that repeats another.",
        )),
    ),
    (
        Topic("clean a burnt pan", (
            "Soak it in hot water with a spoon of baking soda.",
            "Simmer vinegar in it for ten minutes.",
            "Scrape gently with a wooden spatula.",
            "Rub stubborn spots with a paste of salt and lemon.",
            "Avoid steel wool on a coated surface.",
            "Dry it well before you put it away.",
        )),
        Topic("remove a stain from a shirt", (
            "Blot the spot with a cloth instead of rubbing it.",
            "Rinse it from the back with cold water.",
            "Work in a drop of dish soap and wait.",
            "Test any bleach on a hidden seam first.",
            "Wash it before the mark dries completely.",
            "Keep it out of the dryer until the mark is gone.",
        )),
    ),
    (
        Topic("take sharper photos", (
            "Hold the camera with both hands and lean on something.",
            "Choose a faster shutter when things move.",
            "Focus on the eyes when you photograph a person.",
            "Clean the lens with a soft cloth.",
            "Use a tripod in the evening.",
            "Shoot a burst and keep the best frame.",
        )),
        Topic("film a short home video", (
            "Write a list of shots before you begin recording.",
            "Hold every shot for at least five seconds.",
            "Record the sound with a separate microphone.",
            "Keep the phone sideways for the whole clip.",
            "Cut between wide and close views.",
            "Add music quietly so that voices stay clear.",
        )),
    ),
    (
        Topic("make friends in a new city", (
            "Join a class that meets every week.",
            "Say yes to invitations for the first months.",
            "Invite a neighbour over for tea.",
            "Volunteer for a cause you care about.",
            "Suggest a definite day when you want to meet again.",
            "Go to the same cafe often enough to know the staff.",
        )),
        Topic("stay in touch with old friends", (
            "Send a short voice note when something reminds you of them.",
            "Fix a monthly call and put it on the calendar.",
            "Write down birthdays so none is forgotten.",
            "Share old pictures and ask about the memory.",
            "Plan one visit each summer.",
            "Ask about the thing they mentioned last time.",
        )),
    ),
    (
        Topic("speed up my old laptop", (
            "Remove programs that start by themselves.",
            "Delete large files you no longer need.",
            "Install more memory if there is a free slot.",
            "Swap the hard disk for a solid-state drive.",
            "Clear the browser of extensions you do not use.",
            "Blow the dust out of the fan.",
        )),
        Topic("protect my laptop from viruses", (
            "Install updates as soon as they appear.",
            "Use a different password for each account.",
            "Turn on two-step login wherever you can.",
            "Do not open attachments from strangers.",
            "Download software only from the maker's own site.",
            "Back up your files to a disk you unplug.",
        )),
    ),
    (
        Topic("study for a history exam", (
            "Draw a timeline of the main events.",
            "Explain each cause aloud as if to a friend.",
            "Answer old papers under the clock.",
            "Make cards with names on one side and deeds on the other.",
            "Link every date to one picture in your mind.",
            "Review the hardest chapter again before bed.",
        )),
        Topic("study for a maths exam", (
            "Redo the homework problems without looking.",
            "Keep a sheet of formulas and say when each applies.",
            "Check results by putting them back into the equation.",
            "Sort your errors by kind and drill the worst kind.",
            "Draw a sketch before you compute anything.",
            "Show all lines so that partial work earns points.",
        )),
    ),
    (
        Topic("host a birthday party for children", (
            "Send invitations with a clear start and end.",
            "Plan three simple games and one spare.",
            "Ask the parents about allergies.",
            "Serve food that small hands can hold.",
            "Prepare a corner with paper and crayons for shy guests.",
            "Hand out little bags when everyone leaves.",
        )),
        Topic("host a dinner for colleagues", (
            "Cook a dish you have made before.",
            "Set the table in the afternoon.",
            "Offer a main course without meat.",
            "Seat talkative people beside quiet ones.",
            "Put soft music on before the bell rings.",
            "Keep dessert cold so you can stay with your guests.",
        )),
    ),
)
# fmt: on
