"""The tables of a project's SQLite file, and the triggers that keep what is derived from them right."""

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE images (
    id INTEGER PRIMARY KEY,
    image_id INTEGER NOT NULL UNIQUE,
    source INTEGER NOT NULL,
    split TEXT NOT NULL,
    file_name TEXT NOT NULL,
    digest TEXT NOT NULL,
    picture_sha256 TEXT NOT NULL,
    object_ids TEXT NOT NULL,
    record BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'generated', 'failed')),
    round INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    owner TEXT,
    lease REAL,
    key TEXT,
    reason TEXT,
    detail TEXT
);
CREATE INDEX images_by_state ON images (state, id);
CREATE INDEX images_by_owner ON images (owner) WHERE owner IS NOT NULL;

CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    image INTEGER NOT NULL REFERENCES images (id),
    round INTEGER NOT NULL,
    key TEXT NOT NULL,
    owner TEXT NOT NULL,
    outcome TEXT NOT NULL DEFAULT 'open'
        CHECK (outcome IN ('open', 'answered', 'reused', 'duplicate', 'failed', 'lost', 'not_sent')),
    started REAL NOT NULL,
    finished REAL,
    generator TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_version TEXT NOT NULL,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0,
    reason TEXT,
    detail TEXT,
    finish_reason TEXT,
    raw TEXT,
    pairs TEXT
);
CREATE UNIQUE INDEX one_open_call ON calls (image) WHERE outcome = 'open';
CREATE INDEX calls_by_key ON calls (key) WHERE outcome = 'answered';
CREATE INDEX calls_by_image ON calls (image);
CREATE INDEX calls_by_outcome ON calls (outcome);

CREATE TABLE pairs (
    id INTEGER PRIMARY KEY,
    image INTEGER NOT NULL REFERENCES images (id),
    position INTEGER NOT NULL,
    follows INTEGER REFERENCES pairs (id),
    state TEXT NOT NULL CHECK (state IN ('generated', 'failed', 'in_review', 'changed', 'accepted', 'rejected')),
    disputed INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL,
    UNIQUE (image, position)
);
CREATE INDEX pairs_by_state ON pairs (state, disputed, image, position);

CREATE TABLE pair_versions (
    pair INTEGER NOT NULL REFERENCES pairs (id),
    version INTEGER NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    objects TEXT NOT NULL,
    asked TEXT NOT NULL DEFAULT '[]',
    author TEXT NOT NULL,
    reason TEXT NOT NULL,
    problems TEXT NOT NULL DEFAULT '[]',
    call INTEGER REFERENCES calls (id),
    created REAL NOT NULL,
    PRIMARY KEY (pair, version)
) WITHOUT ROWID;
CREATE TRIGGER versions_stay BEFORE DELETE ON pair_versions
    BEGIN SELECT RAISE(ABORT, 'the history of a pair is never deleted'); END;
CREATE TRIGGER versions_stand BEFORE UPDATE OF pair, version, question, answer, objects, asked, author ON pair_versions
    BEGIN SELECT RAISE(ABORT, 'a version is never rewritten; add another'); END;

CREATE TABLE annotators (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    salt BLOB NOT NULL,
    token_hash BLOB NOT NULL,
    active INTEGER NOT NULL DEFAULT 1,
    created REAL NOT NULL
);

CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY,
    pair INTEGER NOT NULL,
    version INTEGER NOT NULL,
    annotator INTEGER NOT NULL REFERENCES annotators (id),
    decision TEXT NOT NULL CHECK (decision IN ('accept', 'edit', 'reject')),
    text_version INTEGER NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    final INTEGER NOT NULL DEFAULT 0,
    replaced INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    FOREIGN KEY (pair, version) REFERENCES pair_versions (pair, version),
    FOREIGN KEY (pair, text_version) REFERENCES pair_versions (pair, version)
);
CREATE UNIQUE INDEX one_verdict_each ON verdicts (pair, annotator) WHERE replaced = 0;
CREATE INDEX verdicts_by_annotator ON verdicts (annotator, replaced);
CREATE TRIGGER verdicts_stay BEFORE DELETE ON verdicts
    BEGIN SELECT RAISE(ABORT, 'a verdict is never deleted; it can be replaced'); END;

CREATE TABLE drafts (
    pair INTEGER NOT NULL REFERENCES pairs (id),
    annotator INTEGER NOT NULL REFERENCES annotators (id),
    version INTEGER NOT NULL,
    content TEXT NOT NULL,
    saved REAL NOT NULL,
    PRIMARY KEY (pair, annotator)
) WITHOUT ROWID;
"""

_REFRESH = """
    DELETE FROM queue WHERE pair = NEW.{pair};
    INSERT INTO queue SELECT * FROM queue_due WHERE pair = NEW.{pair};
"""
_DEAL = """
    DELETE FROM queue;
    INSERT INTO queue SELECT * FROM queue_due;
"""

QUEUES = f"""
CREATE VIEW turns AS
SELECT a.id, (SELECT count(*) FROM annotators b WHERE b.active = 1 AND b.id < a.id) AS turn,
    (SELECT count(*) FROM annotators WHERE active = 1) AS number,
    coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'reviewers'), 2) AS reviewers
FROM annotators a WHERE a.active = 1;

CREATE VIEW queue_due AS
SELECT t.id AS annotator, 1 - p.disputed AS kind, p.image, p.position, p.id AS pair
FROM pairs p, turns t
WHERE p.state = 'in_review'
    AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.pair = p.id AND v.annotator = t.id AND v.replaced = 0)
    AND (p.disputed = 1 OR (
        (t.turn + p.image) % t.number < t.reviewers
        AND (SELECT count(*) FROM verdicts v WHERE v.pair = p.id AND v.replaced = 0) < t.reviewers));

CREATE TABLE queue (
    annotator INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    image INTEGER NOT NULL,
    position INTEGER NOT NULL,
    pair INTEGER NOT NULL,
    PRIMARY KEY (annotator, kind, image, position)
) WITHOUT ROWID;
CREATE INDEX queue_by_pair ON queue (pair);
CREATE TABLE tallies (
    annotator INTEGER PRIMARY KEY,
    waiting INTEGER NOT NULL DEFAULT 0,
    judged INTEGER NOT NULL DEFAULT 0,
    decided INTEGER NOT NULL DEFAULT 0
);

CREATE TRIGGER queue_grows AFTER INSERT ON queue
    BEGIN UPDATE tallies SET waiting = waiting + 1 WHERE annotator = NEW.annotator; END;
CREATE TRIGGER queue_shrinks AFTER DELETE ON queue
    BEGIN UPDATE tallies SET waiting = waiting - 1 WHERE annotator = OLD.annotator; END;
CREATE TRIGGER queue_after_pair AFTER UPDATE OF state, disputed ON pairs BEGIN {_REFRESH.format(pair="id")} END;
CREATE TRIGGER queue_after_verdict AFTER INSERT ON verdicts BEGIN
    UPDATE tallies SET judged = judged + (NEW.final = 0), decided = decided + (NEW.final = 1)
        WHERE annotator = NEW.annotator AND NEW.replaced = 0;
    {_REFRESH.format(pair="pair")}
END;
CREATE TRIGGER queue_after_change AFTER UPDATE OF replaced ON verdicts WHEN NEW.replaced <> OLD.replaced BEGIN
    UPDATE tallies SET judged = judged + (NEW.final = 0) * (OLD.replaced - NEW.replaced),
        decided = decided + (NEW.final = 1) * (OLD.replaced - NEW.replaced)
        WHERE annotator = NEW.annotator;
    {_REFRESH.format(pair="pair")}
END;
CREATE TRIGGER queue_after_arrival AFTER INSERT ON annotators BEGIN
    INSERT INTO tallies (annotator) VALUES (NEW.id);
    {_DEAL}
END;
CREATE TRIGGER queue_after_leave AFTER UPDATE OF active ON annotators WHEN NEW.active <> OLD.active BEGIN {_DEAL} END;
CREATE TRIGGER queue_after_meta AFTER INSERT ON meta WHEN NEW.key = 'reviewers' BEGIN {_DEAL} END;
"""
"""What waits for whom, by (annotator, 0 for a dispute and 1 for a pair to judge, image, position), and how much it is.

``queue_due`` says what the queues are. The triggers keep them so in the transaction that changes something, whichever
version of the program makes the change. Images are dealt to the active annotators in turn.
"""

ADD_ASKED = """
ALTER TABLE pair_versions ADD COLUMN asked TEXT NOT NULL DEFAULT '[]';
DROP TRIGGER versions_stand;
CREATE TRIGGER versions_stand BEFORE UPDATE OF pair, version, question, answer, objects, asked, author ON pair_versions
    BEGIN SELECT RAISE(ABORT, 'a version is never rewritten; add another'); END;
"""
"""Gives a project the column of the masks that are asked for, if it was made before there was one."""

FILL_QUEUES = """
INSERT INTO tallies (annotator, judged, decided)
    SELECT a.id,
        (SELECT count(*) FROM verdicts v WHERE v.annotator = a.id AND v.replaced = 0 AND v.final = 0),
        (SELECT count(*) FROM verdicts v WHERE v.annotator = a.id AND v.replaced = 0 AND v.final = 1)
    FROM annotators a;
INSERT INTO queue SELECT * FROM queue_due;
"""
"""Makes the queues of a project that had none."""
