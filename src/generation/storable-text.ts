/** The text without what PostgreSQL refuses to store: U+0000, and half of a surrogate pair (which becomes U+FFFD). */
export const storable = (text: string): string => text.toWellFormed().replaceAll('\0', '');

/**
 * A text that arrives in pieces and leaves in storable ones. A model may cut an emoji between two pieces: its first
 * half is held back until the second one is there, because either half alone would be replaced by U+FFFD.
 */
export class StorableText {
  private half = '';

  /** @returns what can be stored of all that was given so far and not returned yet; may be empty */
  add(text: string): string {
    const whole = this.half + text;
    const isCut = /[\uD800-\uDBFF]$/.test(whole);
    this.half = isCut ? whole.slice(-1) : '';
    return storable(isCut ? whole.slice(0, -1) : whole);
  }

  /** @returns what was held back; to be called when the second half can no longer arrive */
  end(): string {
    const rest = storable(this.half);
    this.half = '';
    return rest;
  }
}
