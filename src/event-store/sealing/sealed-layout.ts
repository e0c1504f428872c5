/** Bytes of the nonces and tags of AES-256-GCM and of ChaCha20-Poly1305 (RFC 8439), which are of the same lengths. */
export const NONCE = 12;
export const TAG = 16;

/** Where sealed bytes have what: after one byte, their form (`sealed-bytes.ts`). The ciphertext is as long as the text. */
export const NONCE_AT = 1;
export const TAG_AT = NONCE_AT + NONCE;
export const TEXT_AT = TAG_AT + TAG;
