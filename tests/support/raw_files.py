"""Small raw files in the schemas of the published data sets."""

import csv
import gzip
import json
import random
from itertools import product

KUAISAR = {
    "rec_inter": "user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,"
    "follow,search,search_item_related",
    "src_inter": "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,"
    "search_source,item_id,click_cnt,item_type",
    "social_network": "user_id,user_follow_id",
    "user_features": "user_id,search_active_level,rec_active_level,onehot_feat1,onehot_feat2",
    "item_features": "item_id,caption,author_id,item_type,upload_time,upload_type,"
    + ",".join(
        f"{level}_level_{part}"
        for level in ("first", "second", "third", "fourth")
        for part in ("category_id", "category_name", "category_name_en")
    ),
}
KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,"
    "is_rand,tab"
)
KUAIRAND_USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{i}" for i in range(18))
)
KUAIRAND_VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)


def write_csv(path, header, rows, **dialect):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n", **dialect)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def replace(path, old, new):
    """Replaces the first `old` in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def kuaisar(folder):
    """6 users; items 1 to 9 have features, item 10 does not; half of all rows are clicks."""
    header, ms = KUAISAR, 1_684_742_000_000
    rec = [
        # time and playing time as the site shows them: text, and floats
        (u, i, 6079.2, 45400.0, "2023-05-22 15:53:20", f"{ms + n}.0", n % 2, 0, 0, 0, 0, 0)
        for n, (u, i) in enumerate(product(range(1, 7), range(1, 9)))
    ]
    src = [
        (u, u, "2023-05-23 10:00:00", ms + 1000 + n, f"[{i}, 7]", "USER_INPUT", i, n % 3, "VIDEO")
        for n, (u, i) in enumerate(product(range(1, 7), range(5, 11)))
    ]
    levels = [7, "美食", "Food", 8, "", "Noodles", 0, "", "", 0, "", ""]
    items = [
        (i, f"[{i}, 3]", i % 3, "NORMAL", "2023-05-01", "LongImport", *levels) for i in range(1, 10)
    ]
    write_csv(folder / "rec_inter.csv", header["rec_inter"], rec)
    write_csv(folder / "src_inter.csv", header["src_inter"], src)
    write_csv(folder / "social_network.csv", header["social_network"], [(1, "[2, 3]")])
    users = [(u, u % 3, u % 4, u % 3, u % 8) for u in range(1, 7)]
    write_csv(folder / "user_features.csv", header["user_features"], users)
    write_csv(folder / "item_features.csv", header["item_features"], items)
    return folder


def kuairand(folder, version="1k"):
    """4 users, tabs 0 to 6, two standard logs and a random one, which must not be read."""
    ms, data = 1_650_485_801_301, folder / "data"
    rows = [
        (u, v, 20220421, 400, ms + n, n % 2, 0, 0, 0, 0, 0, n % 3 == 0)
        + (500 * v + 250, 20, 0, 0, 0, 0, n % 7)
        for n, (u, v) in enumerate(product(range(4), range(30)))
    ]
    rows = [tuple(int(x) for x in row) for row in rows]
    for name, part in (
        (f"log_standard_4_08_to_4_21_{version}", rows[:60]),
        (f"log_standard_4_22_to_5_08_{version}", rows[60:]),
        (f"log_random_4_22_to_5_08_{version}", rows[:5]),
    ):
        write_csv(data / f"{name}.csv", KUAIRAND_LOG, part)
    users = [
        (u, "full_active", 0, 0, 1, 5, "(0,10]", 312, "[100,1k)", 0, "0", 3624, "730+")
        + tuple("" if i == 4 else (u + i) % 2 for i in range(18))
        for u in range(4)
    ]
    write_csv(data / f"user_features_{version}.csv", KUAIRAND_USERS, users)
    videos = [
        (v, v % 5, "NORMAL", "2020-07-08", "ShortImport", 1, 17200.0, 720, 1280, 98, 4, "12,65")
        if v % 2
        else (v, v % 5, "AD", "", "", "", "", "", "", "", "", "")
        for v in range(28)
    ]
    write_csv(data / f"video_features_basic_{version}.csv", KUAIRAND_VIDEOS, videos)
    return folder


def amazon(folder, year):
    """Beauty and Toys_and_Games in the files and fields of a release, Toys packed; 60 reviews."""
    folder.mkdir()
    for category in ("Beauty", "Toys_and_Games"):
        reviews = [amazon_review(year, u, i) for u in range(6) for i in range(5)]
        metas = [amazon_meta(year, i, category) for i in range(4)]  # item 4 has none
        names = {
            2014: (f"reviews_{category}_5.json", f"meta_{category}.json"),
            2018: (f"{category}_5.json", f"meta_{category}.json"),
            2023: (f"{category}.jsonl", f"meta_{category}.jsonl"),
        }[year]
        dump = repr if year == 2014 else json.dumps
        for name, lines in (
            (names[0], [json.dumps(r) for r in reviews]),
            (names[1], [dump(m) for m in metas]),
        ):
            text = "".join(line + "\n" for line in lines)
            if category == "Beauty":
                (folder / name).write_text(text)
            else:
                with gzip.open(folder / f"{name}.gz", "wt") as file:
                    file.write(text)
    return folder


def amazon_review(year, u, i):
    stars, time = 1.0 + (u + i) % 5, 1_385_596_800 + 60 * u + i
    if year == 2023:
        return {
            "rating": stars,
            "title": "Such a lovely scent",
            "text": "It is.",
            "images": [],
            "asin": f"A{i}x",
            "parent_asin": f"A{i}",
            "user_id": f"U{u}",
            "timestamp": 1000 * time,
            "helpful_vote": 0,
            "verified_purchase": True,
        }
    review = {
        "reviewerID": f"U{u}",
        "asin": f"A{i}",
        "reviewerName": "Ann",
        "reviewText": 'A "quoted" text\nof two lines',
        "overall": stars,
        "summary": "Fine",
        "unixReviewTime": time,
        "reviewTime": "11 28, 2013",
    }
    if year == 2018:
        return review | {"verified": True, "vote": "3", "style": {"Size:": " Large"}, "image": []}
    return review | {"helpful": [0, 1]}


def amazon_meta(year, i, category):
    if year == 2014:
        return {
            "asin": f"A{i}",
            "title": f"It's {category} {i}",
            "price": 9.5,
            "imUrl": "http://x/y.jpg",
            "related": {"also_bought": ["A1"]},
            "salesRank": {category: 3},
            "brand": "Acme",
            "categories": [[category, "Skin Care"], [category, "Other"]],
            "description": "d",
        }
    if year == 2018:
        return {
            "category": [category, "Skin Care"],
            "tech1": "",
            "description": ["d"],
            "title": f"It's {category} {i}",
            "also_buy": [],
            "brand": "Acme",
            "feature": [],
            "rank": "3",
            "also_view": [],
            "main_cat": category,
            "similar_item": "",
            "date": "",
            "price": "$9.50",
            "asin": f"A{i}",
            "imageURL": [],
        }
    return {
        "main_category": category,
        "title": f"It's {category} {i}",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": [],
        "description": [],
        "price": None,
        "images": [{"thumb": "x"}],
        "videos": [],
        "store": "Acme",
        "categories": [category, "Skin Care"],
        "details": {"Brand": "Acme"},
        "parent_asin": f"A{i}",
        "bought_together": None,
    }


def douban(folder):
    """5 users, of whom user 4 has no profile; films 0 to 5 have texts; comments of two lines."""
    quoted = {"delimiter": "\t", "quoting": csv.QUOTE_NONNUMERIC}
    for domain in ("book", "music", "movie"):
        reviews = [
            (u, i, 1 + (u + i) % 5, "novel|japan", 'so "good",\nyes', 2, f"2014-01-{10 + i}", n)
            for n, (u, i) in enumerate(product(range(5), range(6)))
        ]
        reviews[7] = (*reviews[7][:2], "", *reviews[7][3:])
        header = f"user_id,{domain}_id,rating,labels,comment,useful_num,time,ID"
        write_csv(folder / f"{domain}reviews_cleaned.txt", header, reviews, **quoted)
    users = [(f"name{u}", "上海", f"2008-05-0{u + 1}", "hello", u) for u in range(4)]
    header = "user_id,living_place,join_time,self_statement,UID"
    write_csv(folder / "users_cleaned.txt", header, users, **quoted)
    header = "movie_id,name,director,summary,writer,country,date,language,rating,tag,UID"
    movies = [
        (1000 + i, f"Film {i}", "Ozu", "Long.", "", "日本", "1953", "日语", 9.0, "family|japan", i)
        for i in range(6)
    ]
    write_csv(folder / "movies_cleaned.txt", header, movies, **quoted)
    for name in ("books", "music"):
        header = f"{name.removesuffix('s')}_id,UID"
        write_csv(folder / f"{name}_cleaned.txt", header, [(1000, 0)], **quoted)
    return folder


def aliccp_features(**fields):
    return "\x01".join(f"{name.strip('f')}\x02{value}\x031.0" for name, value in fields.items())


def aliccp(folder):
    """Common features c0 to c5 of the users 100 to 102, and 60 rows of each part."""
    folder.mkdir()
    draw = random.Random(0)
    for part in ("train", "test"):
        common, rows = [], []
        for c in range(6):
            own = aliccp_features(f101=100 + c // 2, f121=c // 2, f124=1, f109_14=7)
            own += "\x01109_14\x0288\x030.5"
            common.append(f"c{c},5,{own}\n")
        for n in range(60):
            fields = {"f205": n % 11, "f206": n % 3, "f207": 5, "f508": 9, "f301": 1 + n % 3}
            click = draw.random() < 0.5
            rows.append(f"{n},{click:d},{click and n % 5 == 0:d},c{n % 6},5,")
            rows.append(aliccp_features(**fields) + "\n")
        (folder / f"common_features_{part}.csv").write_text("".join(common))
        (folder / f"sample_skeleton_{part}.csv").write_text("".join(rows))
    return folder
