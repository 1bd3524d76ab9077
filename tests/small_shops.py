"""Small shops in eight languages: titles as shops write them, queries as people type them, and what they mean.

Of each query, the places of the products that answer it.
"""

from __future__ import annotations

from typing import NamedTuple


class Shop(NamedTuple):
    """Titles, and the places of the relevant ones by query."""

    titles: list[str]
    queries: dict[str, set[int]]


SHOPS = {
    "zh": Shop(
        [
            "夏季新款女士红色雪纺连衣裙 长袖中长款",
            "男士真皮商务休闲皮鞋 黑色系带",
            "女士轻便透气运动鞋 网面跑步鞋",
            "西湖龙井绿茶礼盒装 250克",
            "云南普洱茶熟茶饼 357g",
            "北欧简约布艺沙发 三人位可拆洗",
            "304不锈钢保温杯 500ml 便携水杯",
            "儿童玩具遥控汽车 充电越野车",
            "无线蓝牙耳机 降噪入耳式",
            "家用全自动洗衣机 10公斤滚筒",
            "苹果iPhone15手机壳 透明硅胶防摔",
            "加厚羽绒被 冬季双人被芯",
        ],
        {
            "红色连衣裙": {0},
            "女鞋": {2},
            "茶": {3, 4},
            "三人沙发": {5},
            "iphone15 手机壳": {10},
            "不锈钢水杯": {6},
        },
    ),
    "ja": Shop(
        [
            "レディース 長袖ワンピース 花柄 春夏",
            "メンズ防水ランニングシューズ 軽量",
            "宇治抹茶入り緑茶ティーバッグ 50個",
            "ステンレス製真空断熱タンブラー 400ml",
            "子供用自転車 16インチ 補助輪付き",
            "ワイヤレスイヤホン ノイズキャンセリング搭載",
            "折りたたみ傘 晴雨兼用 自動開閉",
            "北欧風木製ダイニングテーブル 4人掛け",
            "USB充電ケーブル Type-C 2m",
            "電気ケトル 1.0L 温度調節",
            "低反発まくら 洗えるカバー付き",
            "折りたたみベッド シングル マットレス付き",
        ],
        {
            "ランニング シューズ メンズ": {1},
            "緑茶": {2},
            "傘": {6},
            "usbケーブル": {8},
            "ダイニングテーブル 4人": {7},
            "子供自転車": {4},
        },
    ),
    "th": Shop(
        [
            "กระเป๋าสะพายข้างผู้หญิง หนังแท้",
            "รองเท้าวิ่งผู้ชาย น้ำหนักเบา",
            "เสื้อยืดคอกลมผ้าฝ้าย สีขาว",
            "หม้อหุงข้าวไฟฟ้า 1.8 ลิตร",
            "พัดลมตั้งโต๊ะ 16 นิ้ว",
            "ที่นอนเด็กพับได้ กันน้ำ",
            "หูฟังบลูทูธไร้สาย ตัดเสียงรบกวน",
            "ชุดมีดทำครัวสแตนเลส 5 ชิ้น",
            "โคมไฟตั้งโต๊ะ LED ถนอมสายตา",
            "รองเท้าแตะผู้หญิง พื้นนุ่ม",
            "กระทะเคลือบหินอ่อน 28 ซม.",
            "ผ้าม่านกันแสง สำเร็จรูป",
        ],
        {
            "รองเท้าผู้หญิง": {9},
            "กระทะ": {10},
            "พัดลม": {4},
            "เสื้อขาว": {2},
            "กระเป๋าหนัง": {0},
            "โคมไฟ led": {8},
        },
    ),
    "hi": Shop(
        [
            "महिलाओं के लिए कॉटन की साड़ी",
            "पुरुषों का सूती कुर्ता सफेद",
            "बच्चों के खिलौने लकड़ी की गाड़ी",
            "स्टील की पानी की बोतल 1 लीटर",
            "चमड़े के जूते काले",
            "रसोई के लिए नॉन स्टिक कढ़ाई",
            "बिजली की केतली 1.5 लीटर",
            "ऊनी कंबल डबल बेड",
            "चमड़े का बटुआ भूरा",
            "प्लास्टिक की कुर्सी सफेद",
            "दीवार घड़ी गोल",
            "बासमती चावल 5 किलो",
        ],
        {
            "साड़ियाँ": {0},
            "काला जूता": {4},
            "कुर्सियाँ": {9},
            "बोतलें": {3},
            "लकड़ी का खिलौना": {2},
            "घड़ियाँ": {10},
        },
    ),
    "ar": Shop(
        [
            "حذاء رياضي رجالي خفيف الوزن",
            "فستان نسائي طويل بأكمام",
            "حقيبة يد جلدية للنساء",
            "سماعات بلوتوث لاسلكية",
            "طقم أواني طبخ من الجرانيت",
            "ساعة يد رجالية مقاومة للماء",
            "كرسي مكتب مريح قابل للتعديل",
            "سجادة صلاة سميكة",
            "غلاية كهربائية 1.7 لتر",
            "لعبة سيارة للأطفال",
            "عطر رجالي 100 مل",
            "مصباح مكتبي بإضاءة LED",
        ],
        {
            "الحذاء الرياضي": {0},
            "فُستان": {1},
            "الحقيبة": {2},
            "عطر ١٠٠ مل": {10},
            "والساعات": {5},
            "ألعاب الاطفال": {9},
        },
    ),
    "tr": Shop(
        [
            "KIRMIZI ELBİSE UZUN KOLLU",
            "ERKEK DERİ AYAKKABI SİYAH",
            "PASLANMAZ ÇELİK ÇAYDANLIK TAKIMI",
            "Bebek Battaniyesi Pamuklu",
            "ISITICI FANLI ELEKTRİKLİ 2000 W",
            "Ahşap Yemek Masası ve Sandalye",
            "IŞIKLI ÇOCUK SPOR AYAKKABISI",
            "Kadın Çanta Hakiki Deri",
            "YASTIK KILIFI İKİLİ",
            "Kulaklık Kablosuz Bluetooth",
            "HALI YIKANABİLİR KAYMAZ TABAN",
            "Çelik Tencere Seti",
        ],
        {
            "kırmızı elbise": {0},
            "ışıklı ayakkabı": {6},
            "ısıtıcı": {4},
            "yastık": {8},
            "halı": {10},
            "bebek battaniye": {3},
        },
    ),
    "de": Shop(
        [
            "Herrenschuhe aus Leder, schwarz",
            "Kinderstuhl aus Buchenholz",
            "Gläser Set 6-teilig für Wein",
            "Bücherregal weiß, 5 Fächer",
            "Wolldecke grau 150 x 200 cm",
            "Elektrischer Wasserkocher 1,7 l",
            "Damenhandtasche mit Reißverschluss",
            "Bettwäsche Baumwolle 135 x 200",
            "Kaffeetassen mit Untertassen",
            "Schreibtischlampe dimmbar",
            "Topf mit Deckel, Edelstahl",
            "Kopfhörer kabellos",
        ],
        {
            "Kinderstühle": {1},
            "Glas": {2},
            "Bücherregale": {3},
            "elektrische Wasserkocher": {5},
            "graue Wolldecken": {4},
            "Töpfe": {10},
        },
    ),
    "fi": Shop(
        [
            "Miesten juoksukengät vedenpitävät",
            "Lasten talvitakki sininen",
            "Villamatto harmaa 160x230",
            "Pöytälamppu himmennettävä",
            "Kahvikuppi posliinia",
            "Sohva kolmen istuttava",
            "Puuvillainen pussilakanasetti",
            "Teräskattila kannella 3 l",
            "Naisten nahkalaukku ruskea",
            "Langattomat kuulokkeet",
            "Ruokapöytä tammea",
            "Seinäkello puinen",
        ],
        {
            "talvitakit lapsille": {1},
            "villamaton": {2},
            "pöytälamput": {3},
            "kahvikupit": {4},
            "sohvat": {5},
            "nahkalaukut": {8},
        },
    ),
}
