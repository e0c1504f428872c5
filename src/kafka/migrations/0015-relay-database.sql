-- The database that the topic was last compared with. A restored or promoted one is another: its log may lack events that
-- were published. Null: not compared yet.
alter table relay_topic add column database text;
