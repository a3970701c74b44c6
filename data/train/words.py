"""Common English words: they fill the tokenizer beyond what captions need, so random prompts can be drawn from it."""

from __future__ import annotations

__all__ = ["COMMON_WORDS"]

_TEXT = """
    about after again against almost along always among animal another answer around away baby back bag ball
    bank basket bear beach bed bench between bicycle bird boat body book bottle bowl box boy branch bread bridge
    bright bring brother brown building bus cake camera car carry cat chair change child church city clean clear
    clock close cloud coat coffee cold colour come computer cook corner country course cow cross cup cut dance
    dark daughter day deep desk dinner dish dog door down dress drink drive dry early earth east eat edge eight
    elephant empty end evening every eye face family far farm fast father feel fence few field fine fire fish
    five floor flower fly food foot forest forget four fresh friend front fruit full garden giraffe girl glass
    go gold good grass gray great ground group grow hair half hand happy hard hat head hear heart heavy help
    hill hold home horse hot hotel hour house hundred hungry ice inside island job journey jump keep key kitchen
    kite knife know lake lamp land language last late laugh lead leaf learn leave letter light like line listen
    little live long look lose loud love lunch machine man many map market meal mean meat meet middle milk mind
    minute mirror money month moon morning mother motorcycle mountain mouth move music name near neck need never
    new next night nine north nothing number ocean often old open orchard other outside oven page paint paper
    parent park part party pass path people person phone piano pick piece pizza place plane plant plate play
    please point poor present pretty price prince pull push quarter queen question quiet rain reach read ready
    really rest rice rich ride ring river road rock roof room rope round run sail salt same sand sandwich say
    school sea season seat second see seven sheep shelf ship shirt shoe shop short shoulder side sign silver
    simple sing sister sit six skate ski skin sky sleep slow smile smoke snow sofa soft some son song soon sound
    south speak spoon sport spring stand star start station stay step stone stop store storm story street strong
    student sugar suitcase summer sun surf sweet swim table tail take talk tall teach team tell ten tennis than
    thank thing think thousand three throw ticket time tired today together tomorrow tooth top touch towel town
    toy track traffic train travel tree truck true try turn two umbrella uncle under understand until use valley
    vase village voice wait walk wall want warm wash watch water wave wear weather week well west wet wheel when
    where while wide wild win wind window wine winter wish with woman wonder wood word work world worry write
    wrong yard year yesterday young zebra zero
"""

COMMON_WORDS: tuple[str, ...] = tuple(_TEXT.split())
