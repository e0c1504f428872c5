-- The text of replies that are still being generated is sealed where payloads are. Then there is no text.
alter table generation_chunk
  alter column text drop not null,
  add column sealed bytea,
  add column key_id uuid;
