-- The text that has arrived of replies that are still being generated.
create table generation_chunk (
  generation text collate "C" not null,
  number integer not null,
  text text not null,
  time timestamptz not null default colloquy_now(),
  primary key (generation, number)
);
