import { boundedCache } from '../bounded-cache.js';
import { Coalescer } from '../event-store/coalescer.js';
import { type KeyStore, sha256Of } from './key-store.js';
import { type ApiKey } from './keys.schemas.js';

/** For so long a key is taken as it was read. */
const FRESH_MS = 2_000;
/** And for so long while it is being read again: a revocation holds everywhere after that. */
const USABLE_MS = 4_000;
const KNOWN_KEYS = 10_000;

interface Known {
  readonly key: ApiKey;
  /** When it was asked for, on a clock that nobody sets. */
  readonly at: number;
}

/** Keys as they were in the database a few seconds ago, so that a request with a key that is in use asks for nothing. */
export class KnownKeys {
  private readonly known = boundedCache<string, Known>(KNOWN_KEYS);
  private readonly asked = new Map<string, Promise<ApiKey | undefined>>();
  /** However many unknown keys somebody tries, the database sees two questions at a time. */
  private readonly questions: Coalescer<Buffer, ApiKey | undefined>;

  /** @param onFailure receives the error of a key that could not be read again, while it is still taken as it was */
  constructor(
    store: KeyStore,
    private readonly onFailure: (error: unknown) => void,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.questions = new Coalescer((hashes) => store.valid(hashes));
  }

  /**
   * The key of which a caller presents the secret, if there is one and it holds.
   * @throws DatabaseUnavailable
   */
  find(secret: string): ApiKey | undefined | Promise<ApiKey | undefined> {
    const hash = sha256Of(secret);
    const name = hash.toString('base64');
    const known = this.known.get(name);
    const age = known ? this.now() - known.at : Infinity;
    if (known && age < FRESH_MS) return known.key;
    const asked = this.asked.get(name) ?? this.ask(name, hash);
    if (!known || age >= USABLE_MS) return asked;
    asked.catch(this.onFailure);
    return known.key;
  }

  private ask(name: string, hash: Buffer): Promise<ApiKey | undefined> {
    const at = this.now();
    const answer = this.questions
      .ask(hash)
      .then((key) => {
        if (key) this.known.set(name, { key, at });
        else this.known.delete(name);
        return key;
      })
      .finally(() => this.asked.delete(name));
    this.asked.set(name, answer);
    return answer;
  }
}
