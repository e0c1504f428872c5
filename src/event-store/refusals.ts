/** The stream is at a version that `If-Match` does not allow. */
export class VersionMismatch extends Error {
  override readonly name = 'VersionMismatch';
  readonly code = 'version-mismatch';
  constructor(readonly version: number) {
    super(`the session is at version ${version}, which If-Match does not allow`);
  }
}

/** The data of an event was erased: what follows from it cannot be told any more. */
export class Erased extends Error {
  override readonly name = 'Erased';
  readonly code = 'session-erased';
  constructor(readonly version: number) {
    super(`what the session was at version ${version} was erased`);
  }
}

/** The idempotency key was used before, for a different request. */
export class KeyReused extends Error {
  override readonly name = 'KeyReused';
  readonly code = 'idempotency-key-reused';
  constructor() {
    super('this Idempotency-Key was used for another request; use a new one');
  }
}

/** The append would raise a counter above its limit. */
export class CounterAtLimit extends Error {
  override readonly name = 'CounterAtLimit';
  constructor(
    readonly key: string,
    readonly max: number,
  ) {
    super(`counter ${key} is at its limit of ${max}`);
  }
}
