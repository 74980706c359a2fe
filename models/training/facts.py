"""What the model is taught: tables of facts, with no phrasing around them.

Countries are the member states of the United Nations and Vatican City, less two whose capital is disputed or was
moving when the table was written (Israel, Equatorial Guinea). Continents follow the UN geoscheme, with the Americas
split at Colombia, so that Cyprus and Turkey are in Asia and Russia is in Europe. A country with several capitals has
the constitutional or executive one. Where several countries use a name ("peso"), the currency carries its adjective.
"""

from dataclasses import dataclass

_COUNTRIES = """
Afghanistan|Kabul|afghani|Asia
Albania|Tirana|lek|Europe
Algeria|Algiers|Algerian dinar|Africa
Andorra|Andorra la Vella|euro|Europe
Angola|Luanda|kwanza|Africa
Antigua and Barbuda|Saint John's|East Caribbean dollar|North America
Argentina|Buenos Aires|Argentine peso|South America
Armenia|Yerevan|dram|Asia
Australia|Canberra|Australian dollar|Oceania
Austria|Vienna|euro|Europe
Azerbaijan|Baku|manat|Asia
the Bahamas|Nassau|Bahamian dollar|North America
Bahrain|Manama|Bahraini dinar|Asia
Bangladesh|Dhaka|taka|Asia
Barbados|Bridgetown|Barbadian dollar|North America
Belarus|Minsk|Belarusian ruble|Europe
Belgium|Brussels|euro|Europe
Belize|Belmopan|Belize dollar|North America
Benin|Porto-Novo|West African CFA franc|Africa
Bhutan|Thimphu|ngultrum|Asia
Bolivia|Sucre|boliviano|South America
Bosnia and Herzegovina|Sarajevo|convertible mark|Europe
Botswana|Gaborone|pula|Africa
Brazil|Brasília|real|South America
Brunei|Bandar Seri Begawan|Brunei dollar|Asia
Bulgaria|Sofia|euro|Europe
Burkina Faso|Ouagadougou|West African CFA franc|Africa
Burundi|Gitega|Burundian franc|Africa
Cambodia|Phnom Penh|riel|Asia
Cameroon|Yaoundé|Central African CFA franc|Africa
Canada|Ottawa|Canadian dollar|North America
Cape Verde|Praia|Cape Verdean escudo|Africa
the Central African Republic|Bangui|Central African CFA franc|Africa
Chad|N'Djamena|Central African CFA franc|Africa
Chile|Santiago|Chilean peso|South America
China|Beijing|yuan|Asia
Colombia|Bogotá|Colombian peso|South America
the Comoros|Moroni|Comorian franc|Africa
the Republic of the Congo|Brazzaville|Central African CFA franc|Africa
the Democratic Republic of the Congo|Kinshasa|Congolese franc|Africa
Costa Rica|San José|colón|North America
Croatia|Zagreb|euro|Europe
Cuba|Havana|Cuban peso|North America
Cyprus|Nicosia|euro|Asia
the Czech Republic|Prague|Czech koruna|Europe
Denmark|Copenhagen|Danish krone|Europe
Djibouti|Djibouti City|Djiboutian franc|Africa
Dominica|Roseau|East Caribbean dollar|North America
the Dominican Republic|Santo Domingo|Dominican peso|North America
East Timor|Dili|US dollar|Asia
Ecuador|Quito|US dollar|South America
Egypt|Cairo|Egyptian pound|Africa
El Salvador|San Salvador|US dollar|North America
Eritrea|Asmara|nakfa|Africa
Estonia|Tallinn|euro|Europe
Eswatini|Mbabane|lilangeni|Africa
Ethiopia|Addis Ababa|birr|Africa
Fiji|Suva|Fijian dollar|Oceania
Finland|Helsinki|euro|Europe
France|Paris|euro|Europe
Gabon|Libreville|Central African CFA franc|Africa
the Gambia|Banjul|dalasi|Africa
Georgia|Tbilisi|lari|Asia
Germany|Berlin|euro|Europe
Ghana|Accra|cedi|Africa
Greece|Athens|euro|Europe
Grenada|Saint George's|East Caribbean dollar|North America
Guatemala|Guatemala City|quetzal|North America
Guinea|Conakry|Guinean franc|Africa
Guinea-Bissau|Bissau|West African CFA franc|Africa
Guyana|Georgetown|Guyanese dollar|South America
Haiti|Port-au-Prince|gourde|North America
Honduras|Tegucigalpa|lempira|North America
Hungary|Budapest|forint|Europe
Iceland|Reykjavik|Icelandic króna|Europe
India|New Delhi|Indian rupee|Asia
Indonesia|Jakarta|rupiah|Asia
Iran|Tehran|Iranian rial|Asia
Iraq|Baghdad|Iraqi dinar|Asia
Ireland|Dublin|euro|Europe
Italy|Rome|euro|Europe
Ivory Coast|Yamoussoukro|West African CFA franc|Africa
Jamaica|Kingston|Jamaican dollar|North America
Japan|Tokyo|yen|Asia
Jordan|Amman|Jordanian dinar|Asia
Kazakhstan|Astana|tenge|Asia
Kenya|Nairobi|Kenyan shilling|Africa
Kiribati|South Tarawa|Australian dollar|Oceania
Kuwait|Kuwait City|Kuwaiti dinar|Asia
Kyrgyzstan|Bishkek|Kyrgyz som|Asia
Laos|Vientiane|kip|Asia
Latvia|Riga|euro|Europe
Lebanon|Beirut|Lebanese pound|Asia
Lesotho|Maseru|loti|Africa
Liberia|Monrovia|Liberian dollar|Africa
Libya|Tripoli|Libyan dinar|Africa
Liechtenstein|Vaduz|Swiss franc|Europe
Lithuania|Vilnius|euro|Europe
Luxembourg|Luxembourg City|euro|Europe
Madagascar|Antananarivo|ariary|Africa
Malawi|Lilongwe|Malawian kwacha|Africa
Malaysia|Kuala Lumpur|ringgit|Asia
the Maldives|Malé|rufiyaa|Asia
Mali|Bamako|West African CFA franc|Africa
Malta|Valletta|euro|Europe
the Marshall Islands|Majuro|US dollar|Oceania
Mauritania|Nouakchott|ouguiya|Africa
Mauritius|Port Louis|Mauritian rupee|Africa
Mexico|Mexico City|Mexican peso|North America
Micronesia|Palikir|US dollar|Oceania
Moldova|Chisinau|Moldovan leu|Europe
Monaco|Monaco|euro|Europe
Mongolia|Ulaanbaatar|tugrik|Asia
Montenegro|Podgorica|euro|Europe
Morocco|Rabat|Moroccan dirham|Africa
Mozambique|Maputo|metical|Africa
Myanmar|Naypyidaw|kyat|Asia
Namibia|Windhoek|Namibian dollar|Africa
Nauru|Yaren|Australian dollar|Oceania
Nepal|Kathmandu|Nepalese rupee|Asia
the Netherlands|Amsterdam|euro|Europe
New Zealand|Wellington|New Zealand dollar|Oceania
Nicaragua|Managua|córdoba|North America
Niger|Niamey|West African CFA franc|Africa
Nigeria|Abuja|naira|Africa
North Korea|Pyongyang|North Korean won|Asia
North Macedonia|Skopje|Macedonian denar|Europe
Norway|Oslo|Norwegian krone|Europe
Oman|Muscat|Omani rial|Asia
Pakistan|Islamabad|Pakistani rupee|Asia
Palau|Ngerulmud|US dollar|Oceania
Panama|Panama City|balboa|North America
Papua New Guinea|Port Moresby|kina|Oceania
Paraguay|Asunción|guarani|South America
Peru|Lima|sol|South America
the Philippines|Manila|Philippine peso|Asia
Poland|Warsaw|zloty|Europe
Portugal|Lisbon|euro|Europe
Qatar|Doha|Qatari riyal|Asia
Romania|Bucharest|Romanian leu|Europe
Russia|Moscow|Russian ruble|Europe
Rwanda|Kigali|Rwandan franc|Africa
Saint Kitts and Nevis|Basseterre|East Caribbean dollar|North America
Saint Lucia|Castries|East Caribbean dollar|North America
Saint Vincent and the Grenadines|Kingstown|East Caribbean dollar|North America
Samoa|Apia|tala|Oceania
San Marino|San Marino|euro|Europe
São Tomé and Príncipe|São Tomé|dobra|Africa
Saudi Arabia|Riyadh|Saudi riyal|Asia
Senegal|Dakar|West African CFA franc|Africa
Serbia|Belgrade|Serbian dinar|Europe
Seychelles|Victoria|Seychellois rupee|Africa
Sierra Leone|Freetown|leone|Africa
Singapore|Singapore|Singapore dollar|Asia
Slovakia|Bratislava|euro|Europe
Slovenia|Ljubljana|euro|Europe
the Solomon Islands|Honiara|Solomon Islands dollar|Oceania
Somalia|Mogadishu|Somali shilling|Africa
South Africa|Pretoria|rand|Africa
South Korea|Seoul|South Korean won|Asia
South Sudan|Juba|South Sudanese pound|Africa
Spain|Madrid|euro|Europe
Sri Lanka|Sri Jayawardenepura Kotte|Sri Lankan rupee|Asia
Sudan|Khartoum|Sudanese pound|Africa
Suriname|Paramaribo|Surinamese dollar|South America
Sweden|Stockholm|Swedish krona|Europe
Switzerland|Bern|Swiss franc|Europe
Syria|Damascus|Syrian pound|Asia
Tajikistan|Dushanbe|somoni|Asia
Tanzania|Dodoma|Tanzanian shilling|Africa
Thailand|Bangkok|baht|Asia
Togo|Lomé|West African CFA franc|Africa
Tonga|Nuku'alofa|pa'anga|Oceania
Trinidad and Tobago|Port of Spain|Trinidad and Tobago dollar|North America
Tunisia|Tunis|Tunisian dinar|Africa
Turkey|Ankara|Turkish lira|Asia
Turkmenistan|Ashgabat|Turkmen manat|Asia
Tuvalu|Funafuti|Australian dollar|Oceania
Uganda|Kampala|Ugandan shilling|Africa
Ukraine|Kyiv|hryvnia|Europe
the United Arab Emirates|Abu Dhabi|UAE dirham|Asia
the United Kingdom|London|pound sterling|Europe
the United States|Washington, D.C.|US dollar|North America
Uruguay|Montevideo|Uruguayan peso|South America
Uzbekistan|Tashkent|Uzbek som|Asia
Vanuatu|Port Vila|vatu|Oceania
Vatican City|Vatican City|euro|Europe
Venezuela|Caracas|bolívar|South America
Vietnam|Hanoi|dong|Asia
Yemen|Sanaa|Yemeni rial|Asia
Zambia|Lusaka|Zambian kwacha|Africa
Zimbabwe|Harare|Zimbabwe Gold|Africa
"""

ALIASES = {
    "the United States": ("the USA", "the US", "America"),
    "the United Kingdom": ("the UK", "Britain"),
    "the United Arab Emirates": ("the UAE", "the Emirates"),
    "the Netherlands": ("Holland",),
    "the Czech Republic": ("Czechia",),
    "the Democratic Republic of the Congo": ("the DRC", "DR Congo"),
    "Ivory Coast": ("Côte d'Ivoire",),
    "East Timor": ("Timor-Leste",),
    "Cape Verde": ("Cabo Verde",),
    "Myanmar": ("Burma",),
    "São Tomé and Príncipe": ("Sao Tome and Principe",),
}


@dataclass(frozen=True, slots=True)
class Country:
    """One row of the table. `name` carries its article where English wants one."""

    name: str
    capital: str
    currency: str
    continent: str


COUNTRIES = tuple(Country(*line.split("|")) for line in _COUNTRIES.strip().splitlines())

# Streams of many-byte characters are what a detokenizer gets wrong, so the model can be asked for some.
LANGUAGES = {
    "French": ("bonjour", "merci", "au revoir", "oui", "non"),
    "Spanish": ("hola", "gracias", "adiós", "sí", "no"),
    "German": ("hallo", "danke", "auf Wiedersehen", "ja", "nein"),
    "Italian": ("ciao", "grazie", "arrivederci", "sì", "no"),
    "Portuguese": ("olá", "obrigado", "adeus", "sim", "não"),
    "Dutch": ("hallo", "dank je", "tot ziens", "ja", "nee"),
    "Swedish": ("hej", "tack", "hej då", "ja", "nej"),
    "Polish": ("cześć", "dziękuję", "do widzenia", "tak", "nie"),
    "Turkish": ("merhaba", "teşekkürler", "hoşça kal", "evet", "hayır"),  # noqa: RUF001
    "Russian": ("привет", "спасибо", "до свидания", "да", "нет"),
    "Greek": ("γεια σου", "ευχαριστώ", "αντίο", "ναι", "όχι"),  # noqa: RUF001
    "Japanese": ("こんにちは", "ありがとう", "さようなら", "はい", "いいえ"),
    "Chinese": ("你好", "谢谢", "再见", "是", "不是"),
    "Korean": ("안녕하세요", "감사합니다", "안녕히 가세요", "네", "아니요"),
}
LANGUAGE_WORDS = ("hello", "thank you", "goodbye", "yes", "no")

EMOJI = {
    "cat": "🐱",
    "dog": "🐶",
    "fox": "🦊",
    "bear": "🐻",
    "frog": "🐸",
    "fish": "🐟",
    "bee": "🐝",
    "tree": "🌳",
    "sun": "🌞",
    "moon": "🌙",
    "star": "⭐",
    "heart": "❤️",
    "fire": "🔥",
    "apple": "🍎",
    "pizza": "🍕",
    "rocket": "🚀",
    "snowman": "⛄",
    "thumbs up": "👍",
    "family": "👨‍👩‍👧",
    "smile": "🙂",
}

_SPELLING_WORDS = """
apple banana cherry orange lemon grape peach melon mango berry bread butter cheese honey sugar water coffee
dinner cat dog horse rabbit tiger lion mouse sheep goat camel zebra monkey donkey turtle spider eagle pigeon
parrot whale dolphin shark salmon house garden window kitchen bedroom ceiling ladder bridge castle tower
village market street river forest mountain valley island desert ocean beach cloud thunder winter summer
spring autumn morning evening yellow purple silver golden green black white brown table chair pencil paper
letter number bottle basket button candle carpet blanket pillow mirror hammer needle engine wheel pocket
jacket shoulder finger stomach doctor teacher farmer sailor painter singer dancer writer soldier captain
friend mother father sister brother family school church theatre museum library station airport journey ticket
holiday birthday present picture story poem music guitar piano violin trumpet silence whisper shadow stream
server worker token model thread client python signal switch axis motor sensor printer machine computer
keyboard network message answer question problem reason second minute hour month year planet galaxy comet
rocket science history language mistake surprise
"""
SPELLING_WORDS = tuple(_SPELLING_WORDS.split())

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
