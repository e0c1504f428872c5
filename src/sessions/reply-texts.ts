import { type EventLog } from '../event-store/log.js';
import { payloadAt } from '../event-store/payload-codec.js';

/** The session that a reply is for, and the version of the event with which it was begun. */
export interface ReplyOwner {
  readonly tenant: string;
  readonly sessionId: string;
  readonly incarnation: number;
  readonly version: number;
}

/** Where a piece of text stands: the name of its generation, and a number that no other piece of it has. */
interface Place {
  readonly generation: string;
  readonly number: number;
}

/** A piece of text as it is stored: plain, or sealed with the key of its session. */
export interface StoredText {
  readonly text: string | null;
  readonly sealed: Buffer | null;
  readonly keyId: string | null;
}

/** Seals the text of replies that are still being generated, as the events of their sessions are. */
export class ReplyTexts {
  constructor(private readonly log: EventLog) {}

  async seal(
    pieces: readonly (Place & { readonly text: string; readonly owner: ReplyOwner })[],
  ): Promise<StoredText[]> {
    const encoded = await this.log.codec.encode(
      pieces.map(({ owner: { tenant, sessionId, incarnation, version }, text, ...place }) => ({
        ...identityOf(place),
        incarnation,
        keyOf: { tenant, streamId: sessionId, incarnation, version },
        data: text,
      })),
    );
    return pieces.map(({ text }, index) => {
      const { sealed, keyId } = payloadAt(encoded, index);
      return { text: sealed ? null : text, sealed, keyId };
    });
  }

  /**
   * The texts, up to the first one that cannot be opened: nothing of an unfinished reply was promised.
   * @throws what is no fault of a text: DatabaseUnavailable, NoKeys, MasterKeyRefused
   */
  async open<Stored extends Place & StoredText>(
    stored: readonly Stored[],
  ): Promise<(Omit<Stored, 'text'> & { readonly text: string })[]> {
    const sealed = stored.flatMap(({ sealed, keyId, generation, number }) =>
      sealed ? [{ ...identityOf({ generation, number }), sealed, keyId }] : [],
    );
    const opened = sealed.length === 0 ? [] : [...(await this.log.codec.openText(sealed))];
    const texts: (Omit<Stored, 'text'> & { readonly text: string })[] = [];
    for (const one of stored) {
      const result = one.sealed ? opened.shift() : undefined;
      if (result?.status === 'rejected') break;
      texts.push({
        ...one,
        text: result ? (JSON.parse(result.value.toString()) as string) : (one.text ?? ''),
      });
    }
    return texts;
  }
}

/** No event has an empty tenant, and no two generations have the same id. */
const identityOf = ({ generation, number }: Place) => ({
  tenant: '',
  streamId: generation,
  version: number,
  type: '~reply',
});
