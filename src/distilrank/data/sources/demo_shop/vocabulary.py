"""Vocabulary of the demo shop: its kinds of products and their names; data only.

All brands and models are invented. Words in lower case are as shoppers type them; titles capitalise them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BRANDS = {
    "furniture": ("Halden", "Osterby", "Castlewood", "Linnea", "Brookmere", "Urbanest", "Fjordhus", "Maplecroft"),
    "textile": ("Softhaven", "Drapewell", "Linnea", "Cosywise", "Homespun"),
    "footwear": ("Kestrel", "Strideon", "Velora", "Altibase", "Paceline", "Roamer"),
    "apparel": ("Velora", "Amberlee", "Northlane", "Wrenfield", "Calloway", "Dovetail"),
    "phone": ("Nuvo", "Orrin", "Solara", "Kyto"),
    "phone accessory": ("Armorline", "Casepoint", "Slimfold", "Voltwise"),
    "computer": ("Orrin", "Lumetra", "Kyto", "Datron"),
    "audio": ("Sonivox", "Baseline", "Auralis", "Kyto", "Echofield"),
    "camera": ("Fotora", "Lumetra", "Opticore", "Kaisen"),
    "camera accessory": ("Steadi", "Opticore", "Packlight", "Casepoint"),
    "television": ("Solara", "Vistron", "Lumetra", "Kaisen"),
    "tool": ("Brannock", "Torvik", "Ironmark", "Makon", "Fieldcrest"),
    "kitchen": ("Cuisera", "Brewton", "Pantrio", "Vitaro", "Hearthly"),
    "outdoor": ("Northlane", "Altibase", "Roamer", "Campora", "Ridgeback"),
    "cycling": ("Velotek", "Pedalo", "Ridgeback", "Spokely"),
    "fitness": ("Strideon", "Paceline", "Gymora", "Trekwell"),
}

MODELS = {
    "furniture": (
        "Marlow", "Aldgate", "Sorrel", "Bexley", "Tindra", "Hollis", "Avery", "Nordmark", "Ellery", "Quill", "Rowan",
        "Camden", "Juno", "Fenwick", "Skagen", "Winslow",
    ),
    "footwear": (
        "AirGlide 4", "Pulse 2", "Swiftfoam", "Cirrus", "Tempo 9", "Ridge GTX", "Cadence", "Nimbus Pro", "Voyager 3",
        "Breeze", "Summit 5", "Dash",
    ),
    "apparel": (
        "Willow", "Harbour", "Juniper", "Sienna", "Ashby", "Ottoline", "Marin", "Elodie", "Corin", "Paloma", "Tilda",
        "Bramley",
    ),
    "phone": (
        "X2", "One", "Prism 7", "K10", "X3", "One Pro", "Prism 8", "K12", "Lite 5", "Mini 4", "Prism Fold", "K12 Max",
    ),
    "computer": ("Slate 14", "Airbook", "Titan", "ProBook 5", "Flex 2", "Creator", "Swift 3", "Studio 16"),
    "audio": ("Hush 700", "Tempo", "Studio 3", "Nova", "Pure 2", "Aria", "Drift", "Halo", "Core", "Wave 5"),
    "camera": ("M50", "Alpha 6", "Vero", "R8", "M70", "Alpha 9", "Vero II", "R10"),
    "television": ("Vivid", "Cine 8", "Clarity", "Q70", "Crystal", "Scene", "Frame", "U6"),
    "tool": ("XR20", "Max Torque", "ProLine", "HD500", "FX4", "Titanium", "Rapid", "Onyx", "Compact 2", "Force"),
    "kitchen": ("Duo", "Classic", "Barista", "Vortex", "Deluxe", "Essential", "Signature", "Nutri", "Metro", "Chef"),
    "outdoor": ("Basecamp", "Ascent", "Drifter", "Timberline", "Lookout", "Trailhead", "Aurora", "Cascade", "Solo",
                "Meadow"),
    "cycling": ("Sprint", "Commuter", "Torrent", "Ravine", "Metro", "Gran 3", "Vista", "Link"),
    "fitness": ("Flow", "Stride One", "Desk Pro", "Glide", "Move 2", "Zen", "Pace", "Fold"),
}  # fmt: skip

COLORS = {
    "black": ("black", "jet black", "onyx"),
    "white": ("white", "arctic white"),
    "grey": ("grey", "charcoal", "slate grey", "gray"),
    "red": ("red", "crimson", "burgundy"),
    "blue": ("blue", "cobalt", "sky blue"),
    "navy": ("navy", "midnight navy"),
    "green": ("green", "forest green", "olive", "sage"),
    "brown": ("brown", "cognac", "chestnut"),
    "beige": ("beige", "oatmeal", "sand", "cream"),
    "pink": ("pink", "blush", "rose"),
    "yellow": ("yellow", "mustard"),
    "purple": ("purple", "lavender", "plum"),
    "silver": ("silver", "brushed silver"),
}
"""Shades in titles and in the color field, by the family that shoppers ask for."""

PALETTES = {
    "home": ("grey", "beige", "green", "navy", "brown", "white", "red"),
    "shoes": ("black", "white", "grey", "blue", "pink", "red"),
    "clothes": ("black", "navy", "red", "green", "pink", "beige", "purple", "yellow"),
    "jackets": ("black", "navy", "green", "red", "yellow", "blue"),
    "leather": ("black", "brown", "beige"),
    "devices": ("black", "white", "silver", "blue", "purple"),
    "kitchen": ("black", "white", "silver", "red"),
    "gear": ("green", "blue", "grey", "red", "black"),
    "none": (),
}

GENDERS = {
    "women": ("womens", "women's", "ladies", "for women", "women"),
    "men": ("mens", "men's", "for men", "men"),
    "unisex": ("unisex",),
}
"""How shoppers ask for a gender; the second form is the one of titles."""

SPELLINGS = {
    "2-seater": ("2 seater", "two seater"),
    "3-seater": ("3 seater", "three seater"),
    "L-shaped": ("l shaped", "corner"),
    "faux leather": ("vegan leather", "pu leather"),
    "solid wood": ("wooden", "wood"),
    "height adjustable": ("adjustable",),
    "memory foam": ("memoryfoam",),
    "waterproof": ("water proof",),
    "wide fit": ("wide",),
    "128GB": ("128 gb",),
    "256GB": ("256 gb",),
    "64GB": ("64 gb",),
    "16GB RAM": ("16gb", "16 gb ram"),
    "8GB RAM": ("8gb", "8 gb ram"),
    "noise cancelling": ("noise canceling", "anc"),
    "wireless": ("bluetooth",),
    "43-inch": ("43 inch", "43 in"),
    "55-inch": ("55 inch", "55 in"),
    "65-inch": ("65 inch", "65 in"),
    "13-inch": ("13 inch",),
    "14-inch": ("14 inch",),
    "15-inch": ("15 inch",),
    "16-inch": ("16 inch",),
    "18V": ("18 volt", "18v"),
    "12V": ("12 volt", "12v"),
    "cordless": ("battery powered", "battery"),
    "corded": ("electric",),
    "stainless steel": ("stainless", "steel"),
    "non-stick": ("nonstick", "non stick"),
    "2-person": ("2 person", "two man"),
    "4-person": ("4 person", "four man"),
    "6-person": ("6 person", "six man"),
    "ultralight": ("lightweight", "light"),
    "shockproof": ("rugged", "protective"),
    "tempered glass": ("glass",),
    "full motion": ("swivel", "swing arm"),
    "below the knee": ("midi",),
    "floor length": ("maxi",),
    "high waisted": ("high waist",),
}
"""Other spellings of an attribute, in queries and some titles."""

SEASONAL = ("christmas {}", "{} christmas gift", "{} gift", "{} gift for her", "{} gift for him", "black friday {}",
            "xmas {} deals", "{} stocking filler")  # fmt: skip
"""Seasonal forms of queries."""

TRAILING_AXES = ("size", "storage", "pack")
"""Attributes that follow the noun in titles."""


@dataclass(frozen=True)
class Kind:
    """A kind of product; grades depend on kinds, which the shop's `product_type` field mostly hides."""

    name: str
    department: str
    aisle: str
    brands: str
    models: str
    """Key of MODELS; empty: its products have no model names."""
    nouns: tuple[str, ...]
    """Names in titles and queries, most common first."""
    slang: tuple[str, ...] = ()
    """Names in queries only."""
    palette: str = "none"
    gendered: bool = False
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Attributes that shoppers ask for, with their values."""
    extras: tuple[str, ...] = ()
    """Additions to titles; some mention an accessory."""
    uses: tuple[str, ...] = ()
    substitutes: tuple[str, ...] = ()
    """Substitutes; the relation is symmetric."""
    hosts: tuple[str, ...] = ()
    """Kinds that this one is an accessory of."""
    short: str = ""
    """The accessory's noun in front of `for ...`; empty: its titles name no host."""
    fitted: bool = False
    """Whether it fits only one model of its host."""


SHOE_SIZES = ("size 6", "size 7", "size 8", "size 9", "size 10")
CLOTHES_SIZES = ("size S", "size M", "size L", "size XL")

KINDS = (
    # Furniture
    Kind(
        "sofa", "Furniture", "Living Room Furniture", "furniture", "furniture",
        ("sofa", "couch", "settee"), slang=("sofas and couches",), palette="home",
        axes={"seats": ("3-seater", "L-shaped", "modular"), "material": ("leather", "velvet", "linen", "faux leather")},
        extras=("with solid oak legs", "with deep cushions", "with storage chaise", "stain resistant"),
        uses=("living room", "small apartment", "family room"),
    ),
    Kind(
        "loveseat", "Furniture", "Living Room Furniture", "furniture", "furniture",
        ("loveseat", "love seat"), palette="home",
        axes={"seats": ("2-seater",), "material": ("leather", "velvet", "linen", "faux leather")},
        extras=("with tapered legs", "with two pillows", "easy assembly"),
        uses=("small apartment", "bedroom", "office"),
        substitutes=("sofa",),
    ),
    Kind(
        "armchair", "Furniture", "Living Room Furniture", "furniture", "furniture",
        ("armchair", "accent chair", "lounge chair"), slang=("comfy chair", "reading chair"), palette="home",
        axes={"material": ("leather", "velvet", "boucle", "linen"), "style": ("recliner", "swivel", "wingback")},
        extras=("with ottoman", "with walnut frame", "high back"), uses=("living room", "reading nook", "nursery"),
    ),
    Kind(
        "sofa cover", "Furniture", "Home Textiles", "textile", "",
        ("sofa cover", "couch slipcover", "sofa protector"), palette="home", short="slipcover",
        axes={"seats": ("3-seater", "2-seater", "L-shaped"), "fabric": ("stretch", "waterproof", "quilted")},
        extras=("machine washable", "with elastic straps", "pet friendly"), uses=("pet owners", "living room"),
        hosts=("sofa", "loveseat"),
    ),
    Kind(
        "throw pillow", "Furniture", "Home Textiles", "textile", "",
        ("throw pillow", "cushion", "accent pillow"), palette="home", short="pillows",
        axes={"material": ("velvet", "linen", "boucle"), "pack": ("set of 2", "set of 4")},
        extras=("with insert", "with hidden zip", "18 x 18"), uses=("couch", "bedroom", "patio"),
        hosts=("sofa", "armchair", "loveseat"),
    ),
    Kind(
        "coffee table", "Furniture", "Living Room Furniture", "furniture", "furniture",
        ("coffee table", "cocktail table"), slang=("low living room table",), palette="none",
        axes={"material": ("solid wood", "glass", "marble"), "shape": ("round", "rectangular", "nesting")},
        extras=("with storage shelf", "with lift top", "with metal legs"), uses=("living room", "small spaces"),
    ),
    Kind(
        "desk", "Furniture", "Office Furniture", "furniture", "furniture",
        ("desk", "computer table", "writing desk"), slang=("workstation",), palette="none",
        axes={"style": ("height adjustable", "corner", "folding"), "material": ("solid wood", "glass", "metal")},
        extras=("with drawers", "with monitor shelf", "with cable tray"), uses=("home office", "gaming", "students"),
    ),
    Kind(
        "office chair", "Furniture", "Office Furniture", "furniture", "furniture",
        ("office chair", "desk chair", "task chair"), slang=("computer chair",), palette="devices",
        axes={"back": ("mesh", "leather", "padded"), "style": ("ergonomic", "executive", "gaming")},
        extras=("with lumbar support", "with headrest", "flip up arms"), uses=("long hours", "home office", "gaming"),
        hosts=("desk",), substitutes=("armchair",),
    ),
    Kind(
        "desk lamp", "Furniture", "Lighting", "furniture", "furniture",
        ("desk lamp", "task light", "table lamp"), palette="devices",
        axes={"style": ("dimmable", "clip on", "architect")},
        extras=("with USB port", "LED", "with touch control"), uses=("home office", "reading", "students"),
        hosts=("desk",),
    ),
    Kind(
        "mattress", "Furniture", "Bedroom", "textile", "furniture",
        ("mattress", "bed mattress"), palette="none",
        axes={"fill": ("memory foam", "hybrid", "latex"), "size": ("queen size", "king size", "twin size")},
        extras=("medium firm", "cooling gel", "bed in a box"), uses=("back pain", "side sleepers", "guest room"),
    ),
    Kind(
        "mattress protector", "Furniture", "Bedroom", "textile", "",
        ("mattress protector", "mattress cover", "bed protector"), palette="none", short="cover",
        axes={"fabric": ("waterproof", "bamboo", "quilted"), "size": ("queen size", "king size", "twin size")},
        extras=("deep pocket", "noiseless", "hypoallergenic"), uses=("allergies", "kids"), hosts=("mattress",),
    ),
    # Footwear
    Kind(
        "running shoes", "Footwear", "Athletic Shoes", "footwear", "footwear",
        ("running shoes", "sneakers", "runners"), slang=("jogging shoes", "trainers"), palette="shoes", gendered=True,
        axes={"style": ("cushioned", "stability", "wide fit"), "size": SHOE_SIZES},
        extras=("breathable mesh", "with gel heel", "lace up"), uses=("marathon training", "gym", "flat feet"),
    ),
    Kind(
        "trail shoes", "Footwear", "Athletic Shoes", "footwear", "footwear",
        ("trail running shoes", "trail shoes", "off road runners"), palette="shoes", gendered=True,
        axes={"style": ("waterproof", "cushioned", "wide fit"), "size": SHOE_SIZES},
        extras=("with lugged outsole", "with rock plate", "quick lace"), uses=("mud", "mountain races", "hiking"),
        substitutes=("running shoes", "hiking boots"),
    ),
    Kind(
        "hiking boots", "Footwear", "Boots", "footwear", "footwear",
        ("hiking boots", "walking boots", "trekking boots"), palette="leather", gendered=True,
        axes={"material": ("leather", "suede", "mesh"), "style": ("waterproof", "insulated", "ultralight"),
              "size": SHOE_SIZES},
        extras=("mid height", "with ankle support", "with rubber toe cap"),
        uses=("mountains", "winter", "rocky trails"),
    ),
    Kind(
        "insoles", "Footwear", "Shoe Care", "footwear", "",
        ("insoles", "shoe inserts", "footbeds"), palette="none", gendered=True, short="inserts",
        axes={"style": ("arch support", "gel", "memory foam"), "size": SHOE_SIZES},
        extras=("trim to fit", "shock absorbing", "for plantar fasciitis"), uses=("standing all day", "flat feet"),
        hosts=("running shoes", "trail shoes", "hiking boots"),
    ),
    Kind(
        "running socks", "Footwear", "Socks", "footwear", "",
        ("running socks", "athletic socks", "ankle socks"), palette="shoes", gendered=True, short="socks",
        axes={"material": ("merino", "cotton", "bamboo"), "pack": ("3 pairs", "6 pairs")},
        extras=("no show", "blister resist", "cushioned heel"), uses=("marathon training", "summer"),
        hosts=("running shoes", "trail shoes"),
    ),
    # Apparel
    Kind(
        "dress", "Apparel", "Women's Clothing", "apparel", "apparel",
        ("dress", "gown"), slang=("frock", "wedding guest outfit"), palette="clothes",
        axes={"length": ("mini", "below the knee", "floor length"), "material": ("satin", "cotton", "lace"),
              "size": CLOTHES_SIZES},
        extras=("with pockets", "puff sleeve", "v neck", "wrap style"),
        uses=("wedding guest", "summer", "office party"),
    ),
    Kind(
        "skirt", "Apparel", "Women's Clothing", "apparel", "apparel",
        ("skirt", "midi skirt"), palette="clothes",
        axes={"material": ("satin", "denim", "cotton"), "style": ("pleated", "high waisted", "wrap"),
              "size": CLOTHES_SIZES},
        extras=("with elastic waist", "a line", "with side slit"), uses=("office", "summer"), substitutes=("dress",),
    ),
    Kind(
        "rain jacket", "Apparel", "Outerwear", "outdoor", "outdoor",
        ("rain jacket", "raincoat", "waterproof jacket"), slang=("mac", "anorak"), palette="jackets", gendered=True,
        axes={"style": ("packable", "hooded", "ultralight"), "size": CLOTHES_SIZES},
        extras=("with taped seams", "with pit zips", "breathable"), uses=("hiking", "cycling", "travel"),
    ),
    Kind(
        "winter coat", "Apparel", "Outerwear", "outdoor", "outdoor",
        ("winter coat", "puffer jacket", "parka"), slang=("warm coat",), palette="jackets", gendered=True,
        axes={"fill": ("down", "synthetic", "wool"), "style": ("hooded", "long", "cropped"), "size": CLOTHES_SIZES},
        extras=("with fur trim", "water repellent", "with inner pocket"), uses=("snow", "cold weather", "commuting"),
        substitutes=("rain jacket",),
    ),
    Kind(
        "jeans", "Apparel", "Bottoms", "apparel", "apparel",
        ("jeans", "denim pants", "denim trousers"), palette="jackets", gendered=True,
        axes={"fit": ("slim", "straight leg", "relaxed"), "style": ("high waisted", "stretch", "ripped"),
              "size": CLOTHES_SIZES},
        extras=("five pocket", "ankle length", "stone washed"), uses=("everyday", "work"),
    ),
    Kind(
        "belt", "Apparel", "Accessories", "apparel", "",
        ("belt", "waist belt"), palette="leather", gendered=True, short="belt",
        axes={"material": ("leather", "canvas", "faux leather"), "style": ("reversible", "braided")},
        extras=("with silver buckle", "1.5 inch wide", "gift boxed"), uses=("casual wear", "suits"),
        hosts=("jeans", "dress"),
    ),
    # Electronics
    Kind(
        "smartphone", "Electronics", "Phones & Accessories", "phone", "phone",
        ("smartphone", "cell phone", "mobile phone"), slang=("android phone", "phone"), palette="devices",
        axes={"network": ("5G", "4G", "dual SIM"), "storage": ("64GB", "128GB", "256GB")},
        extras=("unlocked", "with 50 MP camera", "with case and charger", "6.5 inch display"),
        uses=("seniors", "gaming", "kids"),
    ),
    Kind(
        "phone case", "Electronics", "Phones & Accessories", "phone accessory", "",
        ("phone case", "cell phone cover", "mobile phone case"), palette="devices", short="case",
        axes={"style": ("shockproof", "wallet", "slim"), "material": ("silicone", "leather", "clear")},
        extras=("with ring holder", "wireless charging compatible", "raised bezel"), uses=("work", "outdoors"),
        hosts=("smartphone",), fitted=True,
    ),
    Kind(
        "screen protector", "Electronics", "Phones & Accessories", "phone accessory", "",
        ("screen protector", "screen guard"), palette="none", short="screen film",
        axes={"material": ("tempered glass", "matte", "privacy"), "pack": ("2 pack", "3 pack")},
        extras=("9H hardness", "bubble free", "easy install frame"), uses=("work",), hosts=("smartphone",), fitted=True,
    ),
    Kind(
        "phone charger", "Electronics", "Phones & Accessories", "phone accessory", "",
        ("phone charger", "USB C charger", "charging plug"), palette="devices", short="charger",
        axes={"style": ("fast charging", "magnetic", "car"), "power": ("20W", "45W", "65W")},
        extras=("with braided cable", "foldable plug", "dual port"), uses=("travel", "desk"),
        hosts=("smartphone", "earbuds"),
    ),
    Kind(
        "laptop", "Electronics", "Computers", "computer", "computer",
        ("laptop", "notebook computer"), slang=("portable computer", "ultrabook"), palette="devices",
        axes={"screen": ("13-inch", "14-inch", "16-inch"), "memory": ("8GB RAM", "16GB RAM"),
              "style": ("gaming", "touchscreen", "2 in 1")},
        extras=("with backlit keyboard", "512GB SSD", "fingerprint reader"), uses=("college", "video editing", "work"),
    ),
    Kind(
        "laptop sleeve", "Electronics", "Computers", "phone accessory", "",
        ("laptop sleeve", "laptop bag", "notebook case"), palette="gear", short="sleeve",
        axes={"screen": ("13-inch", "14-inch", "16-inch"), "material": ("neoprene", "felt", "leather")},
        extras=("with accessory pocket", "water resistant", "with shoulder strap"), uses=("travel", "college"),
        hosts=("laptop",),
    ),
    Kind(
        "headphones", "Electronics", "Audio", "audio", "audio",
        ("headphones", "over ear headset"), slang=("cans",), palette="devices",
        axes={"style": ("noise cancelling", "wireless", "studio"), "build": ("foldable", "open back", "kids size")},
        extras=("40 hour battery", "with microphone", "with carrying case"), uses=("flights", "gaming", "office calls"),
    ),
    Kind(
        "earbuds", "Electronics", "Audio", "audio", "audio",
        ("earbuds", "in ear headphones", "earphones"), slang=("ear pods",), palette="devices",
        axes={"style": ("noise cancelling", "wireless", "waterproof"), "build": ("neckband", "ear hook", "stem")},
        extras=("with charging case", "touch control", "with four ear tips"), uses=("running", "gym", "sleeping"),
        substitutes=("headphones",),
    ),
    Kind(
        "camera", "Electronics", "Cameras", "camera", "camera",
        ("digital camera", "mirrorless camera", "camera"), palette="devices",
        axes={"style": ("compact", "full frame", "waterproof"), "video": ("4K", "full HD")},
        extras=("with 18-55mm lens", "with memory card bundle", "flip screen", "with tripod kit"),
        uses=("vlogging", "beginners", "wildlife"),
    ),
    Kind(
        "tripod", "Electronics", "Cameras", "camera accessory", "",
        ("tripod", "camera stand"), palette="none", short="tripod",
        axes={"material": ("carbon fibre", "aluminium"), "style": ("travel", "flexible", "table top")},
        extras=("with ball head", "with phone mount", "60 inch"), uses=("vlogging", "landscape photography"),
        hosts=("camera",),
    ),
    Kind(
        "memory card", "Electronics", "Cameras", "camera accessory", "",
        ("memory card", "SD card"), palette="none", short="card",
        axes={"style": ("micro SD", "UHS-II", "full size"), "storage": ("64GB", "128GB", "256GB")},
        extras=("170 MB/s", "with adapter", "4K ready"), uses=("drones", "photographers"), hosts=("camera",),
    ),
    Kind(
        "television", "Electronics", "TV & Home Cinema", "television", "television",
        ("TV", "television", "smart TV"), slang=("flat screen", "telly"), palette="none",
        axes={"screen": ("43-inch", "55-inch", "65-inch"), "panel": ("OLED", "QLED", "LED"),
              "resolution": ("4K", "8K", "full HD")},
        extras=("with voice remote", "HDR10", "120 Hz", "with wall mount"), uses=("gaming", "sports", "bedroom"),
    ),
    Kind(
        "tv mount", "Electronics", "TV & Home Cinema", "phone accessory", "",
        ("TV mount", "television wall bracket", "TV bracket"), palette="none", short="wall mount",
        axes={"style": ("full motion", "tilting", "fixed"), "screen": ("43-inch", "55-inch", "65-inch")},
        extras=("up to 45 kg", "with HDMI cable", "pre assembled"), uses=("corner", "bedroom"), hosts=("television",),
    ),
    Kind(
        "soundbar", "Electronics", "TV & Home Cinema", "audio", "",
        ("soundbar", "TV speaker"), palette="none", short="soundbar",
        axes={"style": ("2.1 channel", "compact", "surround"), "link": ("wireless", "HDMI ARC")},
        extras=("300 W", "Dolby sound", "wall mountable"), uses=("movies", "gaming"), hosts=("television",),
    ),
    # Tools
    Kind(
        "drill", "Tools", "Power Tools", "tool", "tool",
        ("drill", "power drill", "drill driver"), slang=("screw gun",), palette="none",
        axes={"power": ("cordless", "corded"), "voltage": ("12V", "18V"), "style": ("hammer", "brushless", "compact")},
        extras=("with 2 batteries", "with 30 piece bit set", "with tool bag"), uses=("concrete", "home repairs"),
    ),
    Kind(
        "impact driver", "Tools", "Power Tools", "tool", "tool",
        ("impact driver", "electric screwdriver"), palette="none",
        axes={"power": ("cordless", "corded"), "voltage": ("12V", "18V"), "style": ("brushless", "compact")},
        extras=("bare tool", "with LED light", "with charger"), uses=("decking", "furniture assembly"),
        substitutes=("drill",),
    ),
    Kind(
        "drill bits", "Tools", "Tool Accessories", "tool", "",
        ("drill bits", "drill bit set", "twist bits"), palette="none", short="bits",
        axes={"material": ("cobalt", "titanium", "carbide"), "pack": ("13 piece", "21 piece", "29 piece")},
        extras=("with metal case", "hex shank", "for steel"), uses=("masonry", "wood", "metal"),
        hosts=("drill", "impact driver"),
    ),
    Kind(
        "circular saw", "Tools", "Power Tools", "tool", "tool",
        ("circular saw", "skill saw"), palette="none",
        axes={"power": ("cordless", "corded"), "style": ("mini", "brushless", "plunge")},
        extras=("with laser guide", "with 24T blade", "with dust port"), uses=("plywood", "framing"),
    ),
    Kind(
        "saw blade", "Tools", "Tool Accessories", "tool", "",
        ("saw blade", "cutting disc"), palette="none", short="blade",
        axes={"style": ("carbide", "diamond", "fine tooth"), "pack": ("3 pack", "5 pack")},
        extras=("165 mm", "thin kerf", "60 tooth"), uses=("plywood", "tile", "metal"), hosts=("circular saw",),
    ),
    # Kitchen
    Kind(
        "blender", "Kitchen", "Kitchen Appliances", "kitchen", "kitchen",
        ("blender", "smoothie maker"), slang=("liquidiser",), palette="kitchen",
        axes={"style": ("portable", "countertop", "immersion"), "jar": ("glass", "plastic", "stainless steel")},
        extras=("1200 W", "with travel cup", "ice crushing"), uses=("smoothies", "soup", "baby food"),
    ),
    Kind(
        "food processor", "Kitchen", "Kitchen Appliances", "kitchen", "kitchen",
        ("food processor", "food chopper"), palette="kitchen",
        axes={"style": ("mini", "multifunction", "manual"), "bowl": ("glass", "plastic", "stainless steel")},
        extras=("with dough blade", "800 W", "with slicing disc"), uses=("vegetables", "dough", "baby food"),
        substitutes=("blender",),
    ),
    Kind(
        "coffee maker", "Kitchen", "Coffee & Tea", "kitchen", "kitchen",
        ("coffee maker", "coffee machine", "drip brewer"), palette="kitchen",
        axes={"style": ("programmable", "single serve", "thermal"), "capacity": ("12 cup", "5 cup")},
        extras=("with reusable filter", "auto shut off", "keep warm"), uses=("office", "camper van"),
    ),
    Kind(
        "espresso machine", "Kitchen", "Coffee & Tea", "kitchen", "kitchen",
        ("espresso machine", "espresso maker", "cappuccino machine"), palette="kitchen",
        axes={"style": ("automatic", "manual", "capsule"), "pressure": ("15 bar", "20 bar")},
        extras=("with milk frother", "with grinder", "compact"), uses=("beginners", "lattes"),
        substitutes=("coffee maker",),
    ),
    Kind(
        "coffee filters", "Kitchen", "Coffee & Tea", "kitchen", "",
        ("coffee filters", "filter papers"), palette="none", short="filters",
        axes={"material": ("paper", "mesh", "bamboo"), "pack": ("100 count", "200 count")},
        extras=("unbleached", "basket style", "cone style"), uses=("pour over", "office"), hosts=("coffee maker",),
    ),
    Kind(
        "frying pan", "Kitchen", "Cookware", "kitchen", "kitchen",
        ("frying pan", "skillet"), slang=("fry pan",), palette="kitchen",
        axes={"material": ("cast iron", "stainless steel", "ceramic"), "style": ("non-stick", "deep", "induction")},
        extras=("with glass lid", "oven safe", "10 inch"), uses=("eggs", "steak", "camping"),
    ),
    # Outdoors
    Kind(
        "tent", "Outdoors", "Camping", "outdoor", "outdoor",
        ("tent", "camping shelter"), palette="gear",
        axes={"capacity": ("2-person", "4-person", "6-person"), "style": ("pop up", "ultralight", "family")},
        extras=("with rainfly", "with footprint", "3 season"), uses=("backpacking", "festivals", "family camping"),
    ),
    Kind(
        "tent footprint", "Outdoors", "Camping", "outdoor", "",
        ("tent footprint", "ground sheet", "tent floor saver"), palette="gear", short="footprint",
        axes={"capacity": ("2-person", "4-person", "6-person"), "material": ("nylon", "polyester")},
        extras=("with corner loops", "waterproof coating", "with stuff sack"), uses=("backpacking",), hosts=("tent",),
    ),
    Kind(
        "bicycle", "Outdoors", "Cycling", "cycling", "cycling",
        ("bicycle", "bike"), slang=("push bike",), palette="gear", gendered=True,
        axes={"style": ("mountain", "road", "hybrid"), "frame": ("aluminium", "carbon", "steel"),
              "size": CLOTHES_SIZES},
        extras=("21 speed", "with disc brakes", "with basket"), uses=("commuting", "trails", "beginners"),
    ),
    Kind(
        "bike helmet", "Outdoors", "Cycling", "cycling", "",
        ("bike helmet", "cycling helmet", "bicycle helmet"), palette="gear", gendered=True, short="helmet",
        axes={"style": ("mountain", "road", "folding"), "size": CLOTHES_SIZES},
        extras=("with rear light", "with visor", "18 vents"), uses=("commuting", "trails"), hosts=("bicycle",),
    ),
    Kind(
        "bike lock", "Outdoors", "Cycling", "cycling", "",
        ("bike lock", "bicycle chain", "u lock"), palette="none", short="lock",
        axes={"style": ("folding", "chain", "cable"), "closing": ("combination", "keyed")},
        extras=("with mount bracket", "hardened steel", "1.2 m"), uses=("city", "scooters"), hosts=("bicycle",),
    ),
)  # fmt: skip

NEW_KIND = Kind(
    "walking pad", "Fitness", "Cardio Machines", "fitness", "fitness",
    ("walking pad", "under desk treadmill", "walking treadmill"), palette="devices",
    axes={"style": ("foldable", "incline", "quiet"), "control": ("remote control", "app control")},
    extras=("2.5 HP motor", "no assembly", "with LED display"), uses=("home office", "apartment", "seniors"),
)  # fmt: skip
"""What the shop begins to sell in the second period, if the configuration says so."""
