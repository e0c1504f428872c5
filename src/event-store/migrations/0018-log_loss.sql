-- What processes knew of the log before it was set back. Whoever hears of a new generation writes down how far it had
-- seen each lane, if that is more than there is: what was gone then.
create table log_loss (
  -- The generation that began without it.
  generation integer not null references log_generation,
  -- When it was written down.
  time timestamptz not null default colloquy_now(),
  -- By lane, from lane 0 on: the last position at which the process had appended.
  seen bigint[] not null
);
