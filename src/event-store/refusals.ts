/** The stream is not at a version that `If-Match` allows. */
export class VersionMismatch extends Error {
  override readonly name = 'VersionMismatch';
  readonly code = 'version-mismatch';
  constructor(readonly version: number) {
    super(`the session is at version ${version}, which If-Match does not allow`);
  }
}

/** The key stands for another request. */
export class KeyReused extends Error {
  override readonly name = 'KeyReused';
  readonly code = 'idempotency-key-reused';
  constructor() {
    super('this Idempotency-Key was used for another request; use a new one');
  }
}

/** A counter stands at its limit. */
export class CounterAtLimit extends Error {
  override readonly name = 'CounterAtLimit';
  constructor(
    readonly key: string,
    readonly max: number,
  ) {
    super(`counter ${key} is at its limit of ${max}`);
  }
}
