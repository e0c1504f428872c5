-- Keys of callers. What a caller presents is kept only as its hash: 256 random bits need no slow one.
create table api_key (
  id text collate "C" primary key,
  tenant text collate "C" not null,
  name text collate "C" not null,
  sha256 bytea not null unique,
  scopes text[] not null,
  created_at timestamptz not null default colloquy_now(),
  created_by text not null,
  expires_at timestamptz,
  revoked_at timestamptz,
  revoked_by text
);

-- The name of a key is the actor of what its holder does, so that no two keys of a tenant have the same at a time.
create unique index api_key_name on api_key (tenant, name) where revoked_at is null;
