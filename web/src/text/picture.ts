// A picture of any size as a small square one that a browser can keep.
const EDGE_PX = 96;

/** The middle of the picture as a `data:` address. Raises when it is none. */
export async function square(file: Blob): Promise<string> {
  const whole = await createImageBitmap(file);
  const edge = Math.min(whole.width, whole.height);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = EDGE_PX;
  canvas.getContext("2d")?.drawImage(whole, (whole.width - edge) / 2, (whole.height - edge) / 2, edge, edge, 0, 0, EDGE_PX, EDGE_PX);
  whole.close();
  return canvas.toDataURL("image/webp", 0.8);
}
