/** Why a call failed: what the service answered (RFC 9457), or that nobody answered. */
export class Problem extends Error {
  override readonly name = 'Problem';

  /**
   * @param status 0 when nobody answered, -1 when it was the page itself that failed
   * @param retryAfterMs how long the service asks to wait
   */
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly retryAfterMs?: number,
  ) {
    super(detail);
  }

  /** Whether the same call may well succeed in a moment. */
  get isPassing(): boolean {
    return this.status === 0 || this.status === 503;
  }
}

export async function problemOf(response: Response): Promise<Problem> {
  const body = (await response.json().catch(() => ({}))) as Partial<
    Record<'code' | 'detail' | 'title', string> & { errors: { pointer: string; detail: string }[] }
  >;
  const faults = (body.errors ?? []).map(({ pointer, detail }) => `${pointer} ${detail}`);
  const seconds = Number(response.headers.get('retry-after') ?? NaN);
  return new Problem(
    response.status,
    body.code ?? 'unknown',
    [body.detail ?? body.title ?? `The service answered ${response.status}.`, ...faults].join(' '),
    Number.isFinite(seconds) ? seconds * 1000 : undefined,
  );
}

/** Nobody answered: `fetch` does not say why. */
export const unreachable = (): Problem => new Problem(0, 'unreachable', 'The service does not answer.');

/** What was thrown, as something that can be shown. */
export function asProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  return new Problem(-1, 'console', error instanceof Error ? error.message : String(error));
}

export const isAbort = (error: unknown): boolean =>
  error instanceof DOMException && error.name === 'AbortError';
